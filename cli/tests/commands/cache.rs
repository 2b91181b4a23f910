//! The cache of a gateway: what it keeps, and what it removes.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use potluck_stand_in::{StandIn, content::sha256_hex, hub};
use potluck_testkit::{
    content::{MIB, bytes},
    system::{
        disk::SmallDisk,
        program::{Program, Server},
    },
    wait::wait_until_blocking,
};
use serde_json::Value;

use crate::sandbox::Sandbox;

/// A hub with files, and a gateway to it.
struct World {
    sandbox: Sandbox,
    hub: StandIn,
    home: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
}

impl World {
    /// A hub with files of these sizes: `0`, `1` and so on.
    async fn new(sizes: &[usize]) -> Self {
        let sandbox = Sandbox::new();
        let home = sandbox.dir.path().join("gateway");
        let files = sizes.iter().enumerate();
        let files: BTreeMap<_, _> = files
            .map(|(n, &size)| (n.to_string(), bytes(size, n as u64)))
            .collect();
        let hub = StandIn::start().await;
        let repository = hub::Repository {
            commit: "c".repeat(40),
            is_gated: false,
            files: files
                .iter()
                .map(|(name, bytes)| (name.clone(), bytes.clone().into()))
                .collect(),
        };
        hub.shared.hub.put("models", "org/repo", repository);
        Self {
            sandbox,
            hub,
            home,
            files,
        }
    }

    fn gateway(&self, args: &[&str]) -> Server {
        let mut command = self.sandbox.command();
        command
            .args([
                "gateway",
                "--listen",
                "127.0.0.1:0",
                "-q",
                "--hf",
                &self.hub.url(""),
            ])
            .arg("--home")
            .arg(&self.home)
            .args(args);
        Server::start(&mut command)
    }

    /// Runs `potluck cache` on the gateway's peer; its JSON.
    #[track_caller]
    fn cache(&self, args: &[&str]) -> Vec<Value> {
        let socket = self.control();
        let options = ["--json", "--peer", &socket, "cache"];
        self.sandbox.run(&[&options, args].concat()).expect(0).objects()
    }

    fn control(&self) -> String {
        format!("unix:{}", self.home.join("control.sock").display())
    }

    /// The names of the files whose objects are in the cache, by `ls`. Each is whole on the disk.
    #[track_caller]
    fn kept(&self) -> Vec<String> {
        let mut kept = Vec::new();
        for entry in self.cache(&["ls"]) {
            let name = entry["from"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned();
            let path = Path::new(entry["path"].as_str().unwrap());
            assert_eq!(entry["complete"], true, "{entry}");
            assert!(fs::read(path).unwrap() == self.files[&name], "{entry}");
            kept.push(name);
        }
        kept.sort();
        kept
    }

    /// Number of names in the cache folder, without the marks of what was sent early.
    fn objects_on_disk(&self) -> usize {
        let listed = fs::read_dir(self.home.join("cache")).unwrap();
        let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| !name.ends_with(".early") && !name.ends_with(".tainted"))
            .count()
    }

    /// Downloads a file through the gateway; where its bytes came from.
    #[track_caller]
    fn get(&self, gateway: &Server, name: &str) -> String {
        let (headers, mut body) = request(gateway.address, name);
        let mut received = Vec::new();
        body.read_to_end(&mut received).unwrap();
        assert!(received == self.files[name], "{name}: {headers:?}");
        let name = "x-potluck-source: ";
        let source = headers.iter().find_map(|line| line.strip_prefix(name));
        let source = source.unwrap().to_owned();
        // The last bytes are sent before the object has its name.
        let sum = sha256_hex(&received);
        let path = self.home.join("cache").join(sum);
        wait_until_blocking("the object has its name", || path.exists());
        source
    }
}

/// Asks the gateway for a file; the headers of the answer, and its body.
#[track_caller]
fn request(gateway: SocketAddr, name: &str) -> (Vec<String>, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(gateway).unwrap();
    let head = format!(
        "GET /org/repo/resolve/main/{name} HTTP/1.1\r\nhost: {gateway}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => return (headers, reader),
            line => headers.push(line.to_ascii_lowercase()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_goes_and_what_is_pinned_stays() {
    let world = World::new(&[MIB, MIB, MIB, MIB]).await;
    let gateway = world.gateway(&["--cache-size", "2500KiB"]);
    for name in ["0", "1"] {
        assert_eq!(world.get(&gateway, name), "download");
    }
    let pinned = sha256_hex(&world.files["0"]);
    let entry = world.cache(&["pin", &pinned[..8]]).pop().unwrap();
    assert_eq!(
        (&entry["pinned"], &entry["sha256"]),
        (&true.into(), &pinned.as_str().into())
    );
    assert_eq!(world.get(&gateway, "2"), "download");
    assert_eq!(world.kept(), ["0", "2"], "1 is older than 2, and 0 is pinned");
    assert_eq!(world.get(&gateway, "0"), "cache");
    drop(gateway);

    // Killed: the pin was stored, and the limit is another one.
    let gateway = world.gateway(&["--cache-size", "1500KiB"]);
    wait_until_blocking("it shrinks to its limit", || {
        world.cache(&["gc"]);
        world.kept() == ["0"]
    });
    let (headers, _) = request(gateway.address, "3");
    assert!(
        headers[0].contains("507"),
        "no room beside what is pinned: {headers:?}"
    );
    world.cache(&["unpin", &pinned]);
    assert_eq!(world.get(&gateway, "3"), "download");
    assert_eq!(world.kept(), ["3"]);

    // For people.
    let socket = world.control();
    let run = |args: &[&str]| {
        let options = ["--peer", &socket, "cache"];
        world.sandbox.run(&[&options, args].concat())
    };
    let listed = run(&["ls"]).expect(0).stdout;
    assert!(listed.contains("1 object, 1.00 MiB; limit 1.46 MiB"), "{listed}");
    assert!(listed.lines().all(|line| line.chars().count() <= 80), "{listed}");
    run(&["pin", "ffffffff"]).expect(3);
    let removed = run(&["gc", "--to", "0"]).expect(0).stdout;
    assert!(removed.contains("1.00 MiB freed, 0 B left"), "{removed}");
    assert_eq!(world.objects_on_disk(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_reads_stays() {
    // Larger than all buffers between gateway and client.
    let world = World::new(&[48 * MIB]).await;
    let gateway = world.gateway(&[]);
    world.get(&gateway, "0");
    let (headers, mut reader) = request(gateway.address, "0");
    assert!(headers.iter().any(|line| line == "x-potluck-source: cache"));
    let removed = world.cache(&["gc", "--to", "0"]).pop().unwrap();
    assert_eq!(removed["removed_count"], 0, "{removed}");
    assert_eq!(world.cache(&["ls"])[0]["in_use"], true);
    let mut received = Vec::new();
    reader.read_to_end(&mut received).unwrap();
    assert!(received == world.files["0"]);
    drop(reader);
    wait_until_blocking("it may go now", || {
        world.cache(&["gc", "--to", "0"])[0]["removed_count"] == 1
    });
    assert_eq!(world.objects_on_disk(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_objects_are_removed_leaves_whole_objects() {
    let world = World::new(&[70_000; 60]).await;
    let mut gateway = world.gateway(&[]);
    for n in 0..60 {
        world.get(&gateway, &n.to_string());
    }
    let pinned = sha256_hex(&world.files["7"]);
    world.cache(&["pin", &pinned]);
    for left in [45, 30, 15] {
        let mut command = world.sandbox.command();
        let socket = world.control();
        command.args(["--peer", &socket, "cache", "gc", "--to", "0", "-q"]);
        let collecting = Program::start(&mut command);
        wait_until_blocking("some are removed", || world.objects_on_disk() <= left);
        gateway.kill();
        drop(collecting);
        gateway = world.gateway(&[]);
        let kept = world.kept();
        assert!(kept.contains(&"7".to_owned()), "{kept:?}");
        assert_eq!(kept.len(), world.objects_on_disk(), "nothing is left over");
    }
    // What is gone comes again.
    for n in 0..60 {
        world.get(&gateway, &n.to_string());
    }
    assert_eq!(world.kept().len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_room_before_a_download_waits() {
    let Some(disk) = SmallDisk::mount(96 * MIB) else {
        return;
    };
    let mut world = World::new(&[30 * MIB, 30 * MIB, 30 * MIB]).await;
    world.home = disk.path("gateway");
    let gateway = world.gateway(&[]);
    for name in ["0", "1"] {
        world.get(&gateway, name);
    }
    // Does not fit beside both, and the disk keeps a reserve.
    assert_eq!(world.get(&gateway, "2"), "download");
    assert_eq!(world.kept(), ["1", "2"]);
}
