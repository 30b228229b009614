//! `minisgl generate`.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::rc::Rc;

use minisgl_llm::{Prompt, SamplingParams, derive_seed};
use serde_json::Value;

use crate::args::{Format, GenerateArgs};
use crate::error::{CliError, Result};
use crate::jsonl::{Line, OutputLine};

pub(crate) fn run(args: GenerateArgs) -> Result<()> {
    let params = args.sampling.checked_params()?;
    check_output(&args)?;
    match &args.input {
        None => from_prompts(&args, params),
        Some(path) => from_lines(&args, path, params),
    }
}

/// Refuses to replace what nobody asked to replace, before a model is loaded.
fn check_output(args: &GenerateArgs) -> Result<()> {
    let Some(path) = args.output.as_ref().filter(|_| !args.resume && !args.overwrite) else { return Ok(()) };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => Err(CliError::Usage(format!(
            "{} exists: --resume goes on with it, --overwrite replaces it",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Where lines go, and how many are there already.
struct Destination {
    writer: Box<dyn Write>,
    num_done: usize,
    is_terminal: bool,
}

impl Destination {
    /// Writes a whole line at once: a kill leaves at most one torn line, the last.
    fn write(&mut self, line: &str) -> Result<()> {
        self.writer.write_all(line.as_bytes())?;
        Ok(self.writer.flush()?)
    }
}

fn open_output(args: &GenerateArgs) -> Result<Destination> {
    let Some(path) = &args.output else {
        let stdout = std::io::stdout();
        let is_terminal = stdout.is_terminal();
        return Ok(Destination { writer: Box::new(stdout), num_done: 0, is_terminal });
    };
    let open = OpenOptions::new().read(args.resume).write(true).create(true).truncate(false).open(path);
    let mut file = open.map_err(CliError::file("open", path))?;
    let num_done = if args.resume { keep_whole_lines(&mut file, path)? } else { 0 };
    if !args.resume && file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        file.set_len(0).map_err(CliError::file("empty", path))?;
    }
    Ok(Destination { writer: Box::new(file), num_done, is_terminal: false })
}

/// Counts the whole lines and cuts off a torn one at the end.
fn keep_whole_lines(file: &mut File, path: &Path) -> Result<usize> {
    let mut reader = BufReader::new(&mut *file);
    let mut line = Vec::new();
    let (mut num_lines, mut whole_bytes) = (0, 0);
    loop {
        line.clear();
        let len = reader.read_until(b'\n', &mut line).map_err(CliError::file("read", path))?;
        if len == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let index = serde_json::from_slice::<Value>(&line).ok().and_then(|value| value["index"].as_u64());
        if index != Some(num_lines as u64) {
            return Err(CliError::Run(format!(
                "cannot resume: line {} of {} is not the output for request {num_lines}",
                num_lines + 1,
                path.display()
            )));
        }
        num_lines += 1;
        whole_bytes += len as u64;
    }
    file.set_len(whole_bytes).map_err(CliError::file("shorten", path))?;
    file.seek(SeekFrom::Start(whole_bytes)).map_err(CliError::file("read", path))?;
    Ok(num_lines)
}

/// The prompts of the command line: all are checked before anything runs.
fn from_prompts(args: &GenerateArgs, params: SamplingParams) -> Result<()> {
    let llm = args.engine.load()?;
    let mut output = open_output(args)?;
    let default_format = if args.output.is_some() { Format::Jsonl } else { Format::Text };
    let format = args.format.unwrap_or(default_format);
    let seeds = 0..args.prompt.len() as u64;
    let params: Vec<_> = seeds
        .map(|i| SamplingParams { seed: Some(derive_seed(args.engine.seed, i)), ..params.clone() })
        .collect();
    let outputs = llm.generate(&args.prompt, params)?;
    for (index, (prompt, result)) in args.prompt.iter().zip(&outputs).enumerate() {
        if format == Format::Jsonl {
            output.write(&OutputLine::done(index, None, result).to_text())?;
            continue;
        }
        for completion in result.completions() {
            // A single text stands alone, so that it can be piped.
            let alone = outputs.len() == 1 && result.alternatives.is_empty();
            let heading = if alone { String::new() } else { format!("> {prompt}\n") };
            let end = if alone { "\n" } else { "\n\n" };
            output.write(&format!("{heading}{}{end}", completion.text))?;
        }
    }
    Ok(())
}

/// What the reader of lines shares with the writer: ids of requests on their way, and why reading ended.
#[derive(Default)]
struct Shared {
    ids: HashMap<usize, Value>,
    read_error: Option<std::io::Error>,
}

/// A stream of lines: read as there is room, written in order as soon as they are complete.
fn from_lines(args: &GenerateArgs, path: &Path, params: SamplingParams) -> Result<()> {
    let is_stdin = path == Path::new("-");
    let input: Box<dyn Read> = match is_stdin {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path).map_err(CliError::file("open", path))?),
    };
    if path.is_dir() {
        return Err(CliError::Run(format!(
            "{} is a directory, expected a file of JSON lines",
            path.display()
        )));
    }
    let num_total = if is_stdin { None } else { Some(count_requests(path)?) };
    let llm = args.engine.load()?;
    let mut output = open_output(args)?;
    let shared = Rc::new(RefCell::new(Shared::default()));
    let num_skipped = output.num_done;
    let requests = requests(BufReader::new(input), Rc::clone(&shared), params, args.engine.seed);
    let mut outputs = llm.generate_iter_each(requests.skip(num_skipped));
    // The bar and the lines would disturb each other.
    if !args.engine.no_progress && !output.is_terminal {
        outputs = outputs.with_progress(num_total.map(|num| num.saturating_sub(num_skipped)));
    }
    let mut finished = BTreeMap::new();
    let mut num_failed = 0;
    for (number, result) in outputs {
        let index = num_skipped + number;
        let id = shared.borrow_mut().ids.remove(&index);
        let line = match result {
            Ok(result) => OutputLine::done(index, id.as_ref(), &result).to_text(),
            Err(error) => {
                num_failed += 1;
                OutputLine::failed(index, id.as_ref(), &error.reason()).to_text()
            }
        };
        finished.insert(index, line);
        while let Some(line) = finished.remove(&output.num_done) {
            output.write(&line)?;
            output.num_done += 1;
        }
    }
    if let Some(source) = shared.borrow_mut().read_error.take() {
        return Err(CliError::File { action: "read", path: path.into(), source });
    }
    match num_failed {
        0 => Ok(()),
        _ => Err(CliError::Run(format!(
            "{num_failed} of {} requests failed; their output lines say why",
            output.num_done - num_skipped
        ))),
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

fn count_requests(path: &Path) -> Result<usize> {
    let mut reader = BufReader::new(File::open(path).map_err(CliError::file("open", path))?);
    let mut line = Vec::new();
    let mut num = 0;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(CliError::file("read", path))? == 0 {
            return Ok(num);
        }
        num += usize::from(!is_blank(&line));
    }
}

/// The requests of the lines that are not blank. A line without a seed gets one from its index: what it samples does
/// not depend on where a run was resumed.
fn requests(
    mut reader: impl BufRead,
    shared: Rc<RefCell<Shared>>,
    defaults: SamplingParams,
    seed: u64,
) -> impl Iterator<Item = Result<(Prompt, SamplingParams), String>> {
    let mut index = 0;
    let mut bytes = Vec::new();
    std::iter::from_fn(move || {
        loop {
            bytes.clear();
            match reader.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) if is_blank(&bytes) => {}
                Ok(_) => break,
                Err(error) => {
                    shared.borrow_mut().read_error = Some(error);
                    return None;
                }
            }
        }
        let defaults = SamplingParams { seed: Some(derive_seed(seed, index as u64)), ..defaults.clone() };
        let request = std::str::from_utf8(&bytes)
            .map_err(|error| format!("the line is not UTF-8: {error}"))
            .and_then(Line::parse)
            .and_then(|mut line| {
                if let Some(id) = line.id.take() {
                    shared.borrow_mut().ids.insert(index, id);
                }
                line.into_request(&defaults)
            });
        index += 1;
        Some(request)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        std::fs::write(
            &path,
            "{\"index\":0,\"text\":\"a\"}\n{\"index\":1,\"error\":\"b\"}\n{\"index\":2,\"te",
        )
        .unwrap();
        let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert_eq!(keep_whole_lines(&mut file, &path).unwrap(), 2);
        file.write_all(b"x\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"index\":0,\"text\":\"a\"}\n{\"index\":1,\"error\":\"b\"}\nx\n");
    }

    #[test]
    fn another_file_is_not_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        for text in ["{\"index\":1}\n", "hello\n", "{\"index\":0}\n{\"index\":0}\n"] {
            std::fs::write(&path, text).unwrap();
            let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let error = keep_whole_lines(&mut file, &path).unwrap_err().to_string();
            assert!(error.starts_with("cannot resume: line "), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "nothing was cut off");
        }
    }

    #[test]
    fn lines_have_seeds_of_their_own_wherever_reading_begins() {
        let text = "{\"prompt\": \"a\"}\n\n  \n{\"prompt\": \"b\", \"seed\": 5}\nbad\n{\"prompt\": \"c\", \"id\": 7}";
        let shared = Rc::new(RefCell::new(Shared::default()));
        let all: Vec<_> =
            requests(text.as_bytes(), Rc::clone(&shared), SamplingParams::default(), 1).collect();
        let seed = |i: usize| all[i].as_ref().unwrap().1.seed;
        assert_eq!(
            (all.len(), seed(0), seed(1), seed(3)),
            (4, Some(derive_seed(1, 0)), Some(5), Some(derive_seed(1, 3)))
        );
        assert!(all[2].as_ref().unwrap_err().starts_with("the line is not a request: expected value"));
        assert_eq!(shared.borrow().ids.get(&3), Some(&Value::from(7)));
    }
}
