//! `minisgl chat`.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minisgl_llm::{AbortHandle, ChatOptions, FinishReason, LLM, Message, SamplingParams};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::args::ChatArgs;
use crate::error::{CliError, Result};

/// Of a process that a signal ended: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

const HELP: &str =
    "/reset forgets the conversation, /exit leaves; Ctrl-C stops an answer, or leaves at the prompt";

pub(crate) fn run(args: ChatArgs) -> Result<()> {
    let params = args.sampling.checked_params()?;
    if params.n != 1 {
        return Err(CliError::Usage(format!(
            "invalid sampling flags: n is {}, a chat has one answer",
            params.n
        )));
    }
    let llm = args.engine.load()?;
    let options = ChatOptions { variables: args.variables.into_iter().collect(), ..ChatOptions::default() };
    // A model that cannot chat says so before anybody types.
    llm.encode_chat(&[Message::user("x")], &options)?;
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut session = Session {
        llm,
        params,
        options,
        system: args.system.map(Message::system),
        messages: Vec::new(),
        interrupt: Interrupt::install()?,
    };
    session.reset();
    let mut lines = Lines::new(interactive)?;
    if interactive {
        println_out(&format!("{HELP}\n"))?;
    }
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" => session.reset(),
            "/help" => println_out(&format!("{HELP}\n"))?,
            command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                report(&format!("unknown command {command}; {HELP}"));
            }
            text => session.answer(text)?,
        }
    }
    Ok(())
}

struct Session {
    llm: LLM,
    params: SamplingParams,
    options: ChatOptions,
    system: Option<Message>,
    messages: Vec<Message>,
    interrupt: Interrupt,
}

impl Session {
    fn reset(&mut self) {
        self.messages = self.system.iter().cloned().collect();
    }

    /// Streams the answer to `text`. One that cannot be given is reported, and `text` forgotten.
    fn answer(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::user(text));
        match self.stream() {
            Ok(answer) => self.messages.push(Message::assistant(answer)),
            Err(CliError::Llm(error)) => {
                self.messages.pop();
                report(&error.reason());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn stream(&self) -> Result<String> {
        let prompt = self.llm.encode_chat(&self.messages, &self.options)?;
        let mut stream = self.llm.stream(prompt, self.params.clone())?;
        let _running = self.interrupt.during(stream.abort_handle());
        for increment in &mut stream {
            println_out(&increment?)?;
        }
        let output = stream.into_output()?;
        println_out(if output.finish_reason == FinishReason::Abort { " [stopped]\n" } else { "\n" })?;
        Ok(output.text)
    }
}

fn println_out(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What Ctrl-C does: stops the answer that runs; without one, or the second time, ends the process.
struct Interrupt {
    running: Arc<Mutex<Option<AbortHandle>>>,
}

/// Until it is dropped, Ctrl-C stops an answer.
struct Running<'a>(&'a Interrupt);

fn lock(running: &Mutex<Option<AbortHandle>>) -> MutexGuard<'_, Option<AbortHandle>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupt {
    fn install() -> Result<Self> {
        let running = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&running);
        ctrlc::set_handler(move || match lock(&shared).take() {
            Some(handle) => AbortHandle::abort(&handle),
            None => std::process::exit(INTERRUPTED),
        })
        .map_err(|error| CliError::Run(format!("cannot listen for Ctrl-C: {error}")))?;
        Ok(Self { running })
    }

    fn during(&self, handle: AbortHandle) -> Running<'_> {
        *lock(&self.running) = Some(handle);
        Running(self)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.0.running).take();
    }
}

/// Lines that are typed, with editing and history, or piped.
enum Lines {
    Typed(Box<DefaultEditor>),
    Piped(std::io::StdinLock<'static>),
}

impl Lines {
    fn new(interactive: bool) -> Result<Self> {
        match interactive {
            false => Ok(Lines::Piped(std::io::stdin().lock())),
            true => DefaultEditor::new()
                .map(|editor| Lines::Typed(Box::new(editor)))
                .map_err(|error| CliError::Run(format!("cannot read from the terminal: {error}"))),
        }
    }

    /// `None` at the end, and for Ctrl-C at the prompt.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Lines::Piped(stdin) => {
                let mut line = String::new();
                let read = stdin.read_line(&mut line);
                match read.map_err(|error| CliError::Run(format!("cannot read standard input: {error}")))? {
                    0 => Ok(None),
                    _ => Ok(Some(line)),
                }
            }
            Lines::Typed(editor) => match editor.readline("> ") {
                Ok(line) => {
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(CliError::Run(format!("cannot read from the terminal: {error}"))),
            },
        }
    }
}
