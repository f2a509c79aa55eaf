//! `cowslip volume import`: a thread reads, unpacks and hashes the image while the connection sends it.
//!
//! The agent makes the volume appear when the stream has its end, and drops it when the stream breaks off: a
//! failure or a signal just leaves the end away.

mod source;

use super::{
    Context,
    args::VolumeImportArgs,
    backend::AgentBackend,
    failure::{Failure, Kind, Result},
    image::{Digest, is_stdio},
    interrupt,
    model::Volume,
    names,
    progress::{Progress, Unit},
    sizes,
    volume::labels,
};
use api::v1::{self, import_request::Part};
use serde::Serialize;
use source::{Piece, Source};
use std::{io::IsTerminal, path::Path};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces (of at most 1 MiB) under way between the reader and the connection.
const PIECES_UNDER_WAY: usize = 8;

#[derive(Serialize)]
struct Imported {
    volume: Volume,
    total_bytes: u64,
    blake3: Option<String>,
}

/// Runs the command.
pub fn run(context: &mut Context, args: &VolumeImportArgs) -> Result<()> {
    let volume = names::volume(&args.name)?;
    let size_bytes = args.size.as_deref().map(sizes::parse_volume).transpose()?;
    let expected = args.digest.as_deref().map(Digest::parse).transpose()?;
    let labels = labels(&args.labels)?;
    if is_stdio(&args.file) && std::io::stdin().is_terminal() {
        return Err(Failure::usage("standard input is a terminal").hint("pipe an image into the command"));
    }
    let agent = context.agent()?;
    let source = Source::open(&args.file, !args.no_digest)?;
    let total_bytes = source.len();
    let size_bytes = volume_size(size_bytes, total_bytes, &args.file)?;
    interrupt::install()?;
    let progress = Progress::new("import", Unit::Bytes, total_bytes, context.out.quiet);
    let header = v1::ImportHeader { volume, size_bytes, labels, digest: !args.no_digest };
    let (answer, end) = transfer(&agent, header, source, expected, progress)?;
    let digest = check_digest(&answer, &end)?;
    report(context, args, answer, &end, digest)
}

/// The volume's size: what was asked for, or the image's rounded up. 0: the image tells at its end.
fn volume_size(asked: Option<u64>, image: Option<u64>, file: &Path) -> Result<u64> {
    match (asked, image) {
        (_, Some(0)) => {
            Err(Failure::usage(format!("{} is empty", file.display())).hint("an image has at least a byte"))
        }
        (Some(asked), Some(image)) if image > asked => Err(Failure::usage(format!(
            "{} has {image} bytes and does not fit into a volume of {asked}",
            file.display()
        ))
        .hint("leave --size out, or give a larger one")),
        (Some(asked), _) => Ok(asked),
        (None, Some(image)) => Ok(image.next_multiple_of(sizes::BLOCK_BYTES)),
        (None, None) => Ok(0),
    }
}

/// How the image ended, as the reader saw it.
struct End {
    total_bytes: u64,
    digest: Option<Digest>,
}

/// Sends the image; answers what the agent answered and how the image ended.
fn transfer(
    agent: &AgentBackend,
    header: v1::ImportHeader,
    source: Source,
    expected: Option<Digest>,
    progress: Progress,
) -> Result<(v1::ImportResponse, End)> {
    let (read_tx, read_rx) = mpsc::channel(PIECES_UNDER_WAY);
    let (send_tx, send_rx) = mpsc::channel(1);
    let reader = std::thread::Builder::new().name("image".into()).spawn(move || source.read_into(&read_tx));
    // The reader may sit in a read of a silent pipe for ever: it is never waited for, its channel tells its end.
    drop(reader.map_err(|e| Failure::io("start the reader", &e))?);
    let mut client = agent.client();
    agent.block_on(async move {
        let forward = forward(header, read_rx, send_tx, expected, progress);
        let call = client.import(ReceiverStream::new(send_rx));
        let (answer, forwarded) = tokio::join!(call, forward);
        match (answer, forwarded) {
            (Ok(answer), Ok(Some(end))) => Ok((answer.into_inner(), end)),
            // Why the stream broke off on our side says more than that it did.
            (_, Err(failure)) => Err(failure),
            (Err(status), Ok(_)) => Err(api::Error::from(status).into()),
            (Ok(_), Ok(None)) => Err(Failure::failed("the agent answered before the image ended")),
        }
    })
}

/// Passes pieces from the reader to the connection. None: the agent stopped listening, and its answer says why.
async fn forward(
    header: v1::ImportHeader,
    mut pieces: mpsc::Receiver<Result<Piece>>,
    sender: mpsc::Sender<v1::ImportRequest>,
    expected: Option<Digest>,
    mut progress: Progress,
) -> Result<Option<End>> {
    let request = |part| v1::ImportRequest { part: Some(part) };
    if sender.send(request(Part::Header(header))).await.is_err() {
        return Ok(None);
    }
    loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            () = interrupt::wait() => return Err(Failure::interrupted()),
            () = sender.closed() => return Ok(None),
        };
        let part =
            match piece.unwrap_or_else(|| Err(Failure::failed("the reader of the image ended early")))? {
                Piece::Data { offset, data } => {
                    progress.set(offset + data.len() as u64);
                    Part::Chunk(v1::Chunk { offset, data })
                }
                Piece::End { total_bytes, digest } => {
                    check_expected(expected, digest)?;
                    let blake3 = digest.map(|digest| digest.0.to_vec()).unwrap_or_default();
                    let end = v1::TransferEnd { total_bytes, blake3 };
                    let sent = sender.send(request(Part::End(end))).await;
                    return Ok(sent.is_ok().then_some(End { total_bytes, digest }));
                }
            };
        if sender.send(request(part)).await.is_err() {
            return Ok(None);
        }
    }
}

fn check_expected(expected: Option<Digest>, found: Option<Digest>) -> Result<()> {
    match (expected, found) {
        (Some(expected), Some(found)) if expected != found => {
            Err(Failure::new(Kind::Damaged, format!("the image's digest is {found}, not {expected}"))
                .hint("the image is not the expected one, or was damaged on its way; nothing was imported"))
        }
        _ => Ok(()),
    }
}

/// The agent's digest of what it received must be ours of what was read.
fn check_digest(answer: &v1::ImportResponse, end: &End) -> Result<Option<Digest>> {
    let received = <[u8; 32]>::try_from(answer.blake3.as_slice()).ok().map(Digest);
    match (end.digest, received) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            Err(Failure::new(Kind::Damaged, format!("the agent received {theirs} where {ours} was sent"))
                .hint("delete the volume and import again"))
        }
        (ours, _) => Ok(ours),
    }
}

fn report(
    context: &mut Context,
    args: &VolumeImportArgs,
    answer: v1::ImportResponse,
    end: &End,
    digest: Option<Digest>,
) -> Result<()> {
    let volume = Volume::from(answer.volume.unwrap_or_default());
    context.out.note(&format!("imported volume {}, {}", volume.name, sizes::human(volume.size_bytes)));
    let blake3 = digest.map(|digest| digest.to_string());
    if context.out.json {
        return context.out.json_line(&Imported { volume, total_bytes: end.total_bytes, blake3 });
    }
    match blake3 {
        Some(blake3) => {
            use std::os::unix::ffi::OsStrExt;
            let file = super::output::escape(args.file.as_os_str().as_bytes());
            context.out.line(&format!("{blake3}  {file}"))
        }
        None => Ok(()),
    }
}
