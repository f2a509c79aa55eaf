//! `cowslip completions` and `cowslip man`: both made from the grammar itself.

use super::{
    Context,
    args::{self, CompletionsArgs, ManArgs, ShellChoice},
    complete,
    failure::{Failure, Result},
};
use clap_complete::Shell;
use std::fs;

/// Prints a completion script.
pub fn completions(context: &mut Context, args: &CompletionsArgs) -> Result<()> {
    let shell = match args.shell {
        ShellChoice::Bash => Shell::Bash,
        ShellChoice::Zsh => Shell::Zsh,
        ShellChoice::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::grammar(), "cowslip", &mut script);
    let more = match args.shell {
        ShellChoice::Bash => complete::BASH,
        ShellChoice::Zsh => complete::ZSH,
        ShellChoice::Fish => complete::FISH,
    };
    script.extend_from_slice(more.as_bytes());
    context.out.bytes(&script)
}

/// Writes one manual page a command.
pub fn manual(context: &mut Context, args: &ManArgs) -> Result<()> {
    let dir = args.dir.display();
    fs::create_dir_all(&args.dir).map_err(|e| Failure::io(format!("make {dir}"), &e))?;
    clap_mangen::generate_to(args::grammar(), &args.dir)
        .map_err(|e| Failure::io(format!("write pages to {dir}"), &e))?;
    context.out.note(&format!("wrote the manual pages to {dir}"));
    Ok(())
}
