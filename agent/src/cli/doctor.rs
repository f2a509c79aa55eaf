//! `cowslip doctor`: looks at this host, asks the agent if it answers, and says what to do.

mod host;

use super::{
    Context,
    backend::AgentBackend,
    failure::Result,
    output::{left, right},
};
use api::v1;
use serde::Serialize;
use std::process::ExitCode;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Works, with a limit worth knowing.
    Warn,
    /// Something users expect does not work.
    Fail,
}

impl Level {
    fn word(self, color: bool) -> String {
        let (word, code) = match self {
            Self::Ok => ("ok", 32),
            Self::Warn => ("warn", 33),
            Self::Fail => ("fail", 31),
        };
        if color { format!("\x1b[{code}m{word:4}\x1b[0m") } else { format!("{word:4}") }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What: `fuse`, `agent`, …
    pub name: String,
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    /// Something is as it should be.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), level: Level::Ok, detail: detail.into(), hint: None }
    }

    /// Something works with a limit.
    pub fn warn(name: &str, detail: impl Into<String>, hint: &str) -> Self {
        Self { name: name.to_owned(), level: Level::Warn, detail: detail.into(), hint: Some(hint.to_owned()) }
    }

    /// Something does not work.
    pub fn fail(name: &str, detail: impl Into<String>, hint: &str) -> Self {
        Self { level: Level::Fail, ..Self::warn(name, detail, hint) }
    }
}

impl From<v1::Fact> for Finding {
    fn from(fact: v1::Fact) -> Self {
        use v1::fact::Level as Wire;
        let level = match fact.level() {
            Wire::Ok => Level::Ok,
            Wire::Warn => Level::Warn,
            Wire::Fail => Level::Fail,
        };
        let hint = if fact.hint.is_empty() { None } else { Some(fact.hint) };
        Self { name: fact.name, level, detail: fact.detail, hint }
    }
}

/// Exit code 1 if something failed.
pub fn run(context: &mut Context) -> Result<ExitCode> {
    context.refuse_pool("doctor looks at the host and its agent; `cowslip pool check` looks at a pool")?;
    let mut findings = host::findings();
    match ask(context) {
        Ok(facts) => merge(&mut findings, facts),
        Err(failure) => findings.insert(
            0,
            Finding::fail("agent", failure.message(), failure.hint_text().unwrap_or("see the agent's log")),
        ),
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    print(context, &findings)?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn ask(context: &Context) -> Result<Vec<Finding>> {
    let agent = AgentBackend::connect(&context.socket())?;
    let answer = agent
        .call(|mut client| async move { client.get_doctor_facts(v1::GetDoctorFactsRequest {}).await })?;
    let mut facts = vec![Finding::ok("agent", format!("answers on {}", context.socket().display()))];
    facts.extend(answer.facts.into_iter().map(Finding::from));
    Ok(facts)
}

/// The agent's word counts where both looked: it is the one that uses the device, tool or limit.
fn merge(findings: &mut Vec<Finding>, facts: Vec<Finding>) {
    findings.retain(|finding| facts.iter().all(|fact| fact.name != finding.name));
    findings.splice(0..0, facts);
}

fn print(context: &mut Context, findings: &[Finding]) -> Result<()> {
    if context.out.json {
        return context.out.list(findings, &[left(""), right("")], |_| Vec::new());
    }
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for finding in findings {
        let word = finding.level.word(context.out.color);
        let text = super::output::escape(finding.detail.as_bytes());
        context.out.line(&format!("{word}  {:width$}  {text}", finding.name))?;
        if let Some(hint) = &finding.hint {
            context.out.line(&format!(
                "      {:width$}  hint: {}",
                "",
                super::output::escape(hint.as_bytes())
            ))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_word_counts() {
        let mut findings = vec![Finding::ok("fuse", "here"), Finding::ok("kernel", "6.18")];
        merge(
            &mut findings,
            vec![Finding::ok("agent", "answers"), Finding::fail("fuse", "EPERM", "be root")],
        );
        let names: Vec<(&str, Level)> = findings.iter().map(|f| (f.name.as_str(), f.level)).collect();
        assert_eq!(names, [("agent", Level::Ok), ("fuse", Level::Fail), ("kernel", Level::Ok)]);
    }

    #[test]
    fn a_finding_as_json() {
        let finding = Finding::warn("ublk", "absent", "do");
        assert_eq!(
            super::super::model::json(&finding).unwrap(),
            r#"{"name":"ublk","level":"warn","detail":"absent","hint":"do"}"#
        );
    }
}
