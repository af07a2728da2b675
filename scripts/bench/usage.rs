// std-only clients that count usage: args: port keys_file streams clients rate requests
// `streams` streams at a time and, beside them, `requests` small requests at `rate` per second over `clients`
// connections; each picks a key (a line of the file) by chance. Prints what every key used according to the answers.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
type Counts = Vec<[u64; 3]>; // requests, prompt tokens, completion tokens
struct Client { port: u16, stream: Option<TcpStream>, chance: u64, answer: Vec<u8>, counts: Counts, took_us: Vec<u64>, bad: usize }
impl Client {
    fn new(port: u16, keys: usize, seed: u64) -> Client {
        Client { port, stream: None, chance: seed * 2654435761 + 1, answer: vec![], counts: vec![[0; 3]; keys], took_us: vec![], bad: 0 }
    }
    fn number(&mut self, below: usize) -> usize { // Knuth's linear congruential generator
        self.chance = self.chance.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.chance >> 33) as usize % below
    }
    fn ask(&mut self, keys: &[String], is_stream: bool) {
        let (key, usage) = (self.number(keys.len()), self.number(1_000_000) + 1);
        let more = if is_stream { ",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"chunks\":20" } else { "" };
        let body = format!("{{\"model\":\"helexa/small\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hi\"}}],\"usage\":{}{}}}", usage, more);
        let request = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{}", keys[key], body.len(), body);
        let began = Instant::now();
        match self.exchange(request.as_bytes(), is_stream) {
            Some((prompt, completion)) => {
                let count = &mut self.counts[key];
                count[0] += 1; count[1] += prompt; count[2] += completion;
                self.took_us.push(began.elapsed().as_micros() as u64);
            }
            None => { self.bad += 1; self.stream = None; std::thread::sleep(Duration::from_millis(100)); }
        }
    }
    fn exchange(&mut self, request: &[u8], is_stream: bool) -> Option<(u64, u64)> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            stream.set_nodelay(true).ok()?;
            self.stream = Some(stream);
        }
        let stream = self.stream.as_mut()?;
        stream.write_all(request).ok()?;
        self.answer.clear();
        let mut buffer = [0u8; 16384];
        loop {
            let size = stream.read(&mut buffer).ok()?;
            if size == 0 { return None; }
            self.answer.extend_from_slice(&buffer[..size]);
            if if is_stream { self.answer.ends_with(b"0\r\n\r\n") } else { is_whole(&self.answer) } { break; }
        }
        if !self.answer.starts_with(b"HTTP/1.1 200") { return None; }
        Some((number_after(&self.answer, b"\"prompt_tokens\":")?, number_after(&self.answer, b"\"completion_tokens\":")?))
    }
}
fn find(data: &[u8], what: &[u8]) -> Option<usize> { data.windows(what.len()).position(|w| w == what) }
fn number_after(data: &[u8], what: &[u8]) -> Option<u64> {
    let at = find(data, what)? + what.len();
    data[at..].iter().take_while(|b| b.is_ascii_digit()).map(|b| *b as char).collect::<String>().parse().ok()
}
fn is_whole(answer: &[u8]) -> bool {
    match (find(answer, b"\r\n\r\n"), number_after(answer, b"content-length: ")) {
        (Some(end), Some(length)) => answer.len() >= end + 4 + length as usize,
        _ => false,
    }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let number = |i: usize| a[i].parse::<usize>().unwrap();
    let keys: Arc<Vec<String>> = Arc::new(std::fs::read_to_string(&a[2]).unwrap().lines().map(String::from).collect());
    let (port, streams, clients, rate, requests) = (number(1) as u16, number(3), number(4), number(5), number(6));
    let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let began = Instant::now();
    let run = |seed: usize, is_stream: bool| {
        let (keys, next, done) = (keys.clone(), next.clone(), done.clone());
        std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            let mut client = Client::new(port, keys.len(), seed as u64 + 1);
            if is_stream {
                while !done.load(Ordering::Relaxed) { client.ask(&keys, true); }
            } else {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= requests { break; }
                    let due = Duration::from_secs_f64(turn as f64 / rate as f64);
                    if let Some(early) = due.checked_sub(began.elapsed()) { std::thread::sleep(early); }
                    client.ask(&keys, false);
                }
            }
            client
        }).unwrap()
    };
    let of_streams: Vec<_> = (0..streams).map(|i| run(i, true)).collect();
    let of_small: Vec<_> = (streams..streams + clients).map(|i| run(i, false)).collect();
    let small: Vec<Client> = of_small.into_iter().map(|h| h.join().unwrap()).collect();
    let took_s = began.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    let streamed: Vec<Client> = of_streams.into_iter().map(|h| h.join().unwrap()).collect();
    let mut took_us: Vec<u64> = small.iter().flat_map(|c| c.took_us.iter().copied()).collect();
    took_us.sort();
    let at = |share: f64| took_us.get(((took_us.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0);
    let bad: usize = small.iter().chain(&streamed).map(|c| c.bad).sum();
    let ended: usize = streamed.iter().map(|c| c.took_us.len()).sum();
    println!("small {} in {:.2} s  streams {}  p50_us {} p99_us {}  bad {}", took_us.len(), took_s, ended, at(0.5), at(0.99), bad);
    for key in 0..keys.len() {
        let mut sum = [0u64; 3];
        for client in small.iter().chain(&streamed) { for i in 0..3 { sum[i] += client.counts[key][i]; } }
        println!("{} {} {}", sum[0], sum[1], sum[2]);
    }
}
