//! A client of the page, as a browser without a screen.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

use potluck_testkit::{system::program::Program, wait::DEADLINE};
use serde_json::Value;

use crate::sandbox::Sandbox;

/// `potluck ui` and a session with it.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) program: Program,
    /// `HOST:PORT`.
    pub(super) host: String,
    /// The path that the link gives, with the token.
    pub(super) link_path: String,
    /// The path of the page, with slashes at both ends.
    pub(super) folder: String,
    pub(super) cookie: String,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    /// The value of a header; empty if there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        values.next().map_or("", |(_, value)| value)
    }

    /// The object in the body.
    #[track_caller]
    pub(super) fn object(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    #[track_caller]
    pub(super) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// Sends a request to a server; returns the connection, from which the answer can be read.
fn send(host: &str, request: &str, headers: &[(&str, &str)], body: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut text = format!("{request} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{text}\r\n{body}").as_bytes()).unwrap();
    BufReader::new(stream)
}

/// The answer to a request, which must have a `Host` among its headers.
pub(super) fn ask(host: &str, request: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let headers = [headers, &[("connection", "close")]].concat();
    let mut text = String::new();
    send(host, request, &headers, body)
        .read_to_string(&mut text)
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

impl Page {
    /// Runs `potluck ui` with these arguments, without opening the link.
    pub(super) fn start(sandbox: &Sandbox, args: &[&str]) -> Self {
        let mut command = sandbox.command();
        command.args(["ui", "--json"]).args(args);
        let program = Program::start(&mut command);
        let line: Value = serde_json::from_str(&program.line()).unwrap();
        let link = line["url"].as_str().unwrap();
        let (host, path) = link.strip_prefix("http://").unwrap().split_once('/').unwrap();
        Self {
            host: host.to_owned(),
            link_path: format!("/{path}"),
            folder: String::new(),
            cookie: String::new(),
            program,
        }
    }

    /// Opens the link.
    pub(super) fn open(&mut self) -> Answer {
        let answer = self.get(&self.link_path).expect(303);
        let (cookie, _) = answer.header("set-cookie").split_once(';').unwrap();
        self.cookie = cookie.to_owned();
        self.folder = answer.header("location").to_owned();
        answer
    }

    /// Runs `potluck ui` and opens its link.
    pub(super) fn opened(sandbox: &Sandbox, args: &[&str]) -> Self {
        let mut page = Self::start(sandbox, args);
        page.open();
        page
    }

    /// An absolute path, without the cookie.
    pub(super) fn get(&self, path: &str) -> Answer {
        ask(&self.host, &format!("GET {path}"), &[("host", &self.host)], "")
    }

    /// A path below the folder, with the cookie.
    pub(super) fn get_in(&self, path: &str) -> Answer {
        let request = format!("GET {}{path}", self.folder);
        ask(
            &self.host,
            &request,
            &[("host", &self.host), ("cookie", &self.cookie)],
            "",
        )
    }

    /// A change, as the page requests it.
    pub(super) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_from(path, body, &format!("http://{}", self.host))
    }

    /// A change that a page of this origin requests.
    pub(super) fn post_from(&self, path: &str, body: &Value, origin: &str) -> Answer {
        let request = format!("POST {}{path}", self.folder);
        let headers = [
            ("host", &*self.host),
            ("cookie", &self.cookie),
            ("origin", origin),
        ];
        ask(&self.host, &request, &headers, &body.to_string())
    }

    /// The stream of events.
    pub(super) fn events(&self) -> Events {
        let request = format!("GET {}events", self.folder);
        let headers = [("host", &*self.host), ("cookie", &self.cookie)];
        Events {
            lines: send(&self.host, &request, &headers, ""),
        }
    }
}

/// The events of a page.
#[derive(Debug)]
pub(super) struct Events {
    lines: BufReader<TcpStream>,
}

impl Events {
    /// The next event and its data; `None` once the stream has ended.
    pub(super) fn next(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // Lines between are the head and the sizes of chunks.
            if let Some(event) = line.strip_prefix("event: ") {
                name = event.trim_end().to_owned();
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).unwrap()));
            }
        }
    }

    /// The data of the first event with this name that fits.
    #[track_caller]
    pub(super) fn until(&mut self, name: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (event, data) = self.next().expect("the events go on");
            if event == name && fits(&data) {
                return data;
            }
        }
    }
}
