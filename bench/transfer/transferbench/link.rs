//! Simulates a network link between the sources and the downloading peer: a TCP proxy that delays
//! and paces traffic.
//!
//! Usage: `link LISTEN FORWARD BITS_PER_SECOND DELAY_MS QUEUE_MS`. All connections share one wire
//! per direction. Bytes enter a bounded queue, leave it at the wire's rate, and are delivered
//! DELAY_MS later. While the queue is full the proxy does not read, so that TCP holds the sender
//! back. Prints `listening on ADDR`, then `SECONDS BYTES` every tenth of a second: the bytes
//! delivered to the connecting side so far.

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Maximum bytes per read: half a millisecond at 1 Gbit/s, so that sleeps are few and steps small.
const CHUNK: usize = 64 * 1024;

/// Maximum chunks in flight per connection; rate, queue and delay keep the number below this.
const ON_THE_WIRE: usize = 4096;

struct Wire {
    free_at: Mutex<Instant>,
    seconds_per_byte: f64,
    delay: Duration,
    queue: Duration,
    delivered: AtomicU64,
}

impl Wire {
    fn new(bits: f64, delay: Duration, queue: Duration) -> Arc<Self> {
        Arc::new(Self {
            free_at: Mutex::new(Instant::now()),
            seconds_per_byte: 8.0 / bits,
            delay,
            queue,
            delivered: AtomicU64::new(0),
        })
    }

    /// Waits until the queue has room.
    fn wait_for_room(&self) {
        loop {
            let backlog = self.free_at.lock().unwrap().saturating_duration_since(Instant::now());
            match backlog.checked_sub(self.queue) {
                Some(over) if !over.is_zero() => thread::sleep(over),
                _ => return,
            }
        }
    }

    /// Puts bytes into the queue. Returns the time of their delivery.
    fn send(&self, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap();
        *free_at = (*free_at).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 * self.seconds_per_byte);
        *free_at + self.delay
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, wire: Arc<Wire>) {
    let (sender, arriving) = mpsc::sync_channel::<(Instant, Vec<u8>)>(ON_THE_WIRE);
    let far = wire.clone();
    let deliver = thread::spawn(move || {
        for (at, bytes) in arriving {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
            far.delivered.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; CHUNK];
    loop {
        wire.wait_for_room();
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if sender.send((wire.send(count), buffer[..count].to_vec())).is_err() {
                    break;
                }
            }
        }
    }
    drop(sender);
    let _ = from.shutdown(Shutdown::Read);
    let _ = deliver.join();
}

fn main() {
    let args: Vec<String> = env::args().collect();
    let number = |place: usize| args[place].parse::<f64>().expect("a number");
    let (delay, queue) = (Duration::from_secs_f64(number(4) / 1e3), Duration::from_secs_f64(number(5) / 1e3));
    let listener = TcpListener::bind(&args[1]).expect("cannot listen");
    let (there, back) = (Wire::new(number(3), delay, queue), Wire::new(number(3), delay, queue));
    println!("listening on {}", listener.local_addr().unwrap());
    let told = back.clone();
    thread::spawn(move || {
        let start = Instant::now();
        loop {
            thread::sleep(Duration::from_millis(100));
            println!("{:.3} {}", start.elapsed().as_secs_f64(), told.delivered.load(Ordering::Relaxed));
        }
    });
    for near in listener.incoming() {
        let Ok(near) = near else { continue };
        let Ok(far) = TcpStream::connect(&args[2]) else { continue };
        for stream in [&near, &far] {
            let _ = stream.set_nodelay(true);
        }
        let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let (there, back) = (there.clone(), back.clone());
        thread::spawn(move || carry(near, far, there));
        thread::spawn(move || carry(far2, near2, back));
    }
}
