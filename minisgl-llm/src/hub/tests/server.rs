//! A hub on 127.0.0.1: the pages that the client asks for, and the ways in which a transfer goes wrong.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// How one path is answered.
#[derive(Clone, Default)]
pub(super) struct Page {
    /// 200, or an error's status.
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    pub(super) headers: Vec<(&'static str, String)>,
    /// Cut the connection after so many bytes of the body, once each in order.
    pub(super) cuts: Vec<usize>,
    /// Answer a range with the whole.
    pub(super) ignores_ranges: bool,
    /// The size to claim in answers to HEAD.
    pub(super) claimed_size: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
}

#[derive(Clone, Default)]
struct State {
    pages: Arc<Mutex<HashMap<String, Page>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// Runs until the process ends.
pub(super) struct Server {
    addr: SocketAddr,
    state: State,
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let state = State::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { addr, state }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(super) fn page(&self, path: impl Into<String>, page: Page) {
        self.state.pages.lock().unwrap().insert(path.into(), page);
    }

    /// The requests since the last call.
    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let mut words = line.split(' ');
            let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
            let mut headers = HashMap::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).ok()?;
                let Some((name, value)) = line.trim().split_once(':') else { break };
                headers.insert(name.to_lowercase(), value.trim().to_owned());
            }
            let range =
                headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            self.seen.lock().unwrap().push(Seen { method: method.clone(), path: path.clone(), headers });
            self.answer(&mut stream, &method, &path, range)?;
        }
    }

    fn answer(&self, stream: &mut TcpStream, method: &str, path: &str, range: Option<usize>) -> Option<()> {
        let missing = Page { status: 404, ..Page::default() };
        let (page, cut) = match self.pages.lock().unwrap().get_mut(path) {
            Some(page) => {
                let cut = (method == "GET" && !page.cuts.is_empty()).then(|| page.cuts.remove(0));
                (page.clone(), cut)
            }
            None => (missing, None),
        };
        let start = range.filter(|_| !page.ignores_ranges).unwrap_or(0);
        let status = match (page.status, start) {
            (200, start) if start > 0 && start >= page.body.len() => 416,
            (200, start) if start > 0 => 206,
            (status, _) => status,
        };
        let body = page.body.get(start..).unwrap_or_default();
        let size = if method == "HEAD" { page.claimed_size.unwrap_or(body.len()) } else { body.len() };
        let mut head = format!("HTTP/1.1 {status} x\r\ncontent-length: {size}\r\n");
        if status == 206 {
            let total = page.body.len();
            head += &format!("content-range: bytes {start}-{}/{total}\r\n", total - 1);
        }
        for (name, value) in &page.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if method == "HEAD" {
            return Some(());
        }
        if let Some(cut) = cut {
            stream.write_all(&body[..cut.min(body.len())]).ok()?;
            stream.flush().ok()?;
            let _ = stream.shutdown(Shutdown::Both);
            return None;
        }
        stream.write_all(body).ok()
    }
}
