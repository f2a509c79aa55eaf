//! `cowslip pool …`: makes, shows, checks and dumps pools, without an agent where one is not needed.

use super::{
    Context,
    args::{PoolCheckArgs, PoolCommand, PoolDumpArgs, PoolInitArgs},
    failure::{Failure, Kind, Result},
    interrupt,
    model::Pool,
    progress::{Progress, Unit},
    sizes, status,
};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

const DEFAULT_POOL: &str = "/var/lib/cowslip";

/// Runs one of the pool commands.
pub fn run(context: &mut Context, command: &PoolCommand) -> Result<ExitCode> {
    match command {
        PoolCommand::Init(args) => init(context, args)?,
        PoolCommand::Show => show(context)?,
        PoolCommand::Check(args) => return check(context, args),
        PoolCommand::Dump(args) => dump(context, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn init(context: &mut Context, args: &PoolInitArgs) -> Result<()> {
    context.refuse_pool("pool init takes the pool as its argument")?;
    let size_bytes = args.size.as_deref().map(sizes::parse_volume).transpose()?;
    let options = store::InitOptions { size_bytes, force: args.force, ..store::InitOptions::default() };
    let pool =
        Pool::from(store::Pool::init(&args.path, &options).map_err(|e| Failure::from(e).about(&args.path))?);
    if context.out.json {
        return context.out.json_line(&pool);
    }
    context.out.note(&format!("made pool {}, {}", pool.path, sizes::human(pool.size_bytes)));
    Ok(())
}

fn show(context: &mut Context) -> Result<()> {
    let pool = context.reader()?.status()?.pool;
    let mut properties = vec![
        ("path", pool.path.clone()),
        ("id", pool.id.clone()),
        ("state", pool.state.clone()),
        ("room", status::room(&pool)),
        ("opened", format!("{} times", pool.generation)),
        ("ring", pool.ring.clone()),
    ];
    if let Some(recovery) = &pool.recovery {
        properties.push(("found", recovery.clone()));
    }
    context.out.object(&pool, &properties)
}

#[derive(Serialize)]
struct CheckReport {
    path: String,
    clean: bool,
    findings: Vec<CheckFinding>,
    blocks_checked: u64,
    nodes_checked: u64,
    versions: u64,
    used_bytes: u64,
}

#[derive(Serialize)]
struct CheckFinding {
    place: String,
    message: String,
}

fn check(context: &mut Context, args: &PoolCheckArgs) -> Result<ExitCode> {
    let path = match (&args.path, &context.global.pool) {
        (Some(path), None) | (None, Some(path)) => path.clone(),
        (None, None) => PathBuf::from(DEFAULT_POOL),
        (Some(_), Some(_)) => {
            return Err(Failure::usage("the pool is given twice").hint("leave --pool or PATH out"));
        }
    };
    let (pool, quiet) = (path.clone(), context.out.quiet);
    let report = interrupt::abandon(move || {
        let mut progress = Progress::new("check", Unit::Items, None, quiet);
        let mut known_total = 0;
        store::Pool::check(&pool, &mut |done, total| {
            if total != known_total {
                known_total = total;
                progress.set_total(total);
            }
            progress.set(done);
        })
    })?;
    let report = report.map_err(|error| explain_lock(error, &path, "check"))?;
    tell(context, &path, report)
}

fn explain_lock(error: store::Error, path: &Path, what: &str) -> Failure {
    let failure = Failure::from(error).about(path);
    match failure.kind() {
        Kind::Busy => failure.or_hint(format!("an agent serves this pool: stop it for the {what}")),
        _ => failure,
    }
}

fn tell(context: &mut Context, path: &Path, report: store::CheckReport) -> Result<ExitCode> {
    let findings: Vec<CheckFinding> =
        report.findings.into_iter().map(|f| CheckFinding { place: f.place, message: f.message }).collect();
    let clean = findings.is_empty();
    let report = CheckReport {
        path: path.display().to_string(),
        clean,
        findings,
        blocks_checked: report.blocks_checked,
        nodes_checked: report.nodes_checked,
        versions: report.versions,
        used_bytes: report.used_bytes,
    };
    if context.out.json {
        context.out.json_line(&report)?;
    } else {
        for finding in &report.findings {
            context.out.line(&format!("{}: {}", finding.place, finding.message))?;
        }
        context.out.flush()?;
        let checked = format!(
            "{} blocks, {} nodes, {} versions",
            report.blocks_checked, report.nodes_checked, report.versions
        );
        if clean {
            context.out.note(&format!("{} is clean: {checked}", report.path));
        }
    }
    if clean {
        return Ok(ExitCode::SUCCESS);
    }
    let failure = Failure::new(
        Kind::Damaged,
        format!("pool {} is damaged, findings: {}", report.path, report.findings.len()),
    )
    .hint("copy what is readable with `cowslip --pool PATH volume export`, then make a new pool");
    context.out.flush()?;
    Err(failure)
}

fn dump(context: &mut Context, args: &PoolDumpArgs) -> Result<()> {
    context.refuse_pool("pool dump takes the pool as its argument")?;
    let json = context.out.json;
    let mut writer = Stdout { context, failure: None };
    let dumped = store::Pool::dump(&args.path, &args.what, json, &mut writer);
    if let Some(failure) = writer.failure {
        return Err(failure);
    }
    dumped.map_err(|error| explain_lock(error, &args.path, "dump"))
}

/// Standard output as a writer that keeps why it failed.
struct Stdout<'a> {
    context: &'a mut Context,
    failure: Option<Failure>,
}

impl Write for Stdout<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.context.out.bytes(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(failure) => {
                self.failure = Some(failure);
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.context.out.flush().map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
