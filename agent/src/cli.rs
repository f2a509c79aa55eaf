//! The command line: parses, runs one command, reports how it ended.

mod archive;
mod args;
mod backend;
mod complete;
mod doctor;
mod events;
mod export;
mod failure;
mod files;
mod image;
mod import;
mod interrupt;
mod model;
mod mount;
mod names;
mod output;
mod pool;
mod progress;
mod restore;
mod scrub;
mod shell;
mod sizes;
mod snapshot;
mod status;
mod sys;
mod times;
mod volume;

use args::{AgentArgs, Cli, Command, Global};
use backend::{AgentBackend, Backend, PoolBackend};
use clap::{FromArgMatches, parser::ValueSource};
use failure::{Failure, Result};
use output::{ColorChoice, Output};
use std::{ffi::OsString, io::IsTerminal, path::PathBuf, process::ExitCode};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let (json, color) = style_of(&arguments);
    let error_color = color.on(std::io::stderr().is_terminal());
    let outcome = match parse(&arguments, color) {
        Ok(Some((cli, matches))) => check_globals(&cli.global, &matches).and_then(|()| run(cli)),
        Ok(None) => Ok(ExitCode::SUCCESS),
        Err(Unparsed::Told) => return ExitCode::from(failure::Kind::Usage.exit_code()),
        Err(Unparsed::Failure(failure)) => Err(failure),
    };
    outcome.unwrap_or_else(|failure| failure.report(json, error_color))
}

/// How to print errors, known before the arguments are parsed, since parsing may fail.
fn style_of(arguments: &[OsString]) -> (bool, ColorChoice) {
    let mut json = false;
    let mut color = ColorChoice::Auto;
    let mut words = arguments.iter().skip(1).take_while(|word| *word != "--").peekable();
    while let Some(word) = words.next() {
        let choice = match word.to_str() {
            Some("--json") => {
                json = true;
                continue;
            }
            Some("--color") => words.peek().and_then(|next| next.to_str()),
            Some(word) => word.strip_prefix("--color="),
            None => None,
        };
        match choice {
            Some("always") => color = ColorChoice::Always,
            Some("never") => color = ColorChoice::Never,
            _ => {}
        }
    }
    (json, color)
}

enum Unparsed {
    /// The parser has told what is wrong.
    Told,
    Failure(Failure),
}

/// Parses the arguments; None: help or the version was asked for and printed.
fn parse(
    arguments: &[OsString],
    color: ColorChoice,
) -> std::result::Result<Option<(Cli, clap::ArgMatches)>, Unparsed> {
    let clap_color = match color {
        ColorChoice::Auto => clap::ColorChoice::Auto,
        ColorChoice::Always => clap::ColorChoice::Always,
        ColorChoice::Never => clap::ColorChoice::Never,
    };
    let parsed = args::grammar().color(clap_color).try_get_matches_from(arguments);
    let parsed = parsed.and_then(|matches| Cli::from_arg_matches(&matches).map(|cli| (cli, matches)));
    let error = match parsed {
        Ok(parsed) => return Ok(Some(parsed)),
        Err(error) => error,
    };
    if !error.use_stderr() {
        return match error.print() {
            Ok(()) => Ok(None),
            Err(e) => Err(Unparsed::Failure(Failure::output(&e))),
        };
    }
    if style_of(arguments).0 {
        return Err(Unparsed::Failure(usage_failure(&error)));
    }
    // Nobody is left to tell when stderr is gone.
    let _ = error.print();
    Err(Unparsed::Told)
}

/// The parser's words as one failure: its first paragraph, and the rest of it as the hint.
fn usage_failure(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let message = paragraphs.next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
    let hint: Vec<String> = paragraphs.filter(|p| !p.is_empty()).collect();
    Failure::usage(message).hint(hint.join("; "))
}

fn check_globals(global: &Global, matches: &clap::ArgMatches) -> Result<()> {
    let serves = matches.subcommand_name() == Some("agent");
    let given = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    if !serves && global.pool.is_some() && given("socket") {
        return Err(Failure::usage("--socket and --pool exclude each other")
            .hint("--socket talks to an agent, --pool reads a pool without one"));
    }
    Ok(())
}

/// What every command gets: the global options and standard output.
pub struct Context {
    pub global: Global,
    pub out: Output,
}

impl Context {
    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.global.socket.clone().unwrap_or_else(|| PathBuf::from(api::DEFAULT_SOCKET))
    }

    /// Who answers commands that only read: the pool of `--pool`, else the agent.
    pub fn reader(&self) -> Result<Box<dyn Backend>> {
        match &self.global.pool {
            Some(path) => Ok(Box::new(PoolBackend::open(path)?)),
            None => Ok(Box::new(AgentBackend::connect(&self.socket())?)),
        }
    }

    /// The agent, for commands that change something or ask what only an agent knows.
    pub fn agent(&self) -> Result<AgentBackend> {
        self.refuse_pool("this command needs the agent; --pool only reads")?;
        AgentBackend::connect(&self.socket())
    }

    /// Refuses `--pool` where it means nothing.
    pub fn refuse_pool(&self, why: &str) -> Result<()> {
        match &self.global.pool {
            Some(_) => {
                Err(Failure::usage(why).hint("leave --pool out; `cowslip agent --pool PATH` serves a pool"))
            }
            None => Ok(()),
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let Cli { global, command } = cli;
    if !matches!(command, Command::Agent(_)) && global.verbose > 0 {
        crate::logging::init(["info", "debug", "trace"][usize::from(global.verbose - 1).min(2)]);
    }
    let out = Output::new(global.json, global.quiet, global.color);
    let mut context = Context { global, out };
    let code = dispatch(&mut context, command)?;
    context.out.flush()?;
    Ok(code)
}

/// Runs the agent in this process. No other thread may have been started yet.
fn serve(context: &mut Context, args: AgentArgs) -> Result<ExitCode> {
    let options = crate::config::AgentOptions {
        config: args.config,
        pool: args.pool,
        socket: args.socket,
        snapshots: args.snapshots,
        transport: args.transport,
        verbose: context.global.verbose,
        quiet: context.global.quiet,
    };
    crate::serve::run(&options).map_err(|error| match error.downcast::<api::Error>() {
        Ok(error) => error.into(),
        Err(error) => Failure::failed(format!("{error:#}")),
    })
}

fn dispatch(context: &mut Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Pool(command) => return pool::run(context, &command),
        Command::Agent(args) => return serve(context, args),
        Command::Status(args) => status::run(context, &args)?,
        Command::Volume(command) => volume::run(context, &command)?,
        Command::Snapshot(command) => snapshot::run(context, &command)?,
        Command::Clone(args) => volume::clone(context, &args)?,
        Command::Rollback(args) => volume::rollback(context, &args)?,
        Command::Ls(args) => return files::ls(context, &args),
        Command::Cat(args) => files::cat(context, &args)?,
        Command::Find(args) => return files::find(context, &args),
        Command::Versions(args) => return files::versions(context, &args),
        Command::Diff(args) => return files::diff(context, &args),
        Command::Restore(args) => return restore::run(context, &args),
        Command::Export(args) => return archive::run(context, &args),
        Command::Mount(args) => mount::mount(context, &args)?,
        Command::Umount(args) => mount::umount(context, &args)?,
        Command::Scrub(args) => scrub::run(context, &args)?,
        Command::Events(args) => events::run(context, &args)?,
        Command::Doctor(_) => return doctor::run(context),
        Command::Complete(args) => complete::run(context, &args)?,
        Command::Completions(args) => shell::completions(context, &args)?,
        Command::Man(args) => shell::manual(context, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}
