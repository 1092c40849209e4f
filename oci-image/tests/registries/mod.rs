//! Registries for tests: Debian's, with every kind of authentication, and one that does whatever a test wants.
// Each test file uses its own part, and none is a crate that others could reach.
#![allow(dead_code, unreachable_pub)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SigningKey};

/// `docker-registry` on a port of this machine, ended when it is dropped.
pub struct DockerRegistry {
    child: Child,
    pub host: String,
    pub dir: tempfile::TempDir,
}

impl DockerRegistry {
    /// Starts one with these settings (`REGISTRY_…`) beside those that every one has.
    pub fn start(settings: &[(&str, &str)]) -> DockerRegistry {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n",
                dir.path().join("data").display()
            ),
        )
        .unwrap();
        // A port that is free now may be taken a moment later: try again.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let host = format!("127.0.0.1:{port}");
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .env("REGISTRY_HTTP_ADDR", &host)
                .envs(settings.iter().copied())
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
                .spawn()
                .expect("docker-registry starts");
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(20) {
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                if TcpStream::connect(&host).is_ok() {
                    return DockerRegistry { child, host, dir };
                }
                thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!(
            "docker-registry does not start: {}",
            std::fs::read_to_string(dir.path().join("log")).unwrap_or_default()
        );
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The user `me` with the password `secret`, as `htpasswd -B` writes it.
pub const HTPASSWD: &str = "me:$2y$05$Put..aXuCcPjCFHcH8HOE.njEELhI2HXYLMdfv3gN51qL5zYvcf6G\n";

/// A request as a server sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// An HTTP server that answers as a test says; connections are closed after each answer.
pub struct Server {
    pub host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// `answer` gets each request, the number of requests of the same method and path before it, and the connection.
    pub fn start(answer: impl Fn(&Seen, usize, &mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let (all, answer) = (Arc::clone(&seen), Arc::new(answer));
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), all, answer) = (stream, Arc::clone(&all), Arc::clone(&answer))
                else {
                    continue;
                };
                thread::spawn(move || {
                    let Some(request) = read_request(&stream) else {
                        return;
                    };
                    let number = {
                        let mut all = all.lock().unwrap();
                        let number = all
                            .iter()
                            .filter(|one| one.method == request.method && one.path == request.path)
                            .count();
                        all.push(request.clone());
                        number
                    };
                    answer(&request, number, &mut stream);
                });
            }
        });
        Server { host, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut seen = Seen {
        method,
        path,
        headers,
        body: Vec::new(),
    };
    if let Some(length) = seen.header("content-length") {
        let mut body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        seen.body = body;
    }
    Some(seen)
}

/// Sends a whole answer.
pub fn reply(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    head(stream, status, headers, Some(body.len()));
    let _ = stream.write_all(body);
}

/// Sends the start of an answer; without a length, the body ends with the connection.
pub fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], length: Option<usize>) {
    let mut text = vec![
        format!("HTTP/1.1 {status} X"),
        "connection: close".to_owned(),
    ];
    text.extend(
        headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}")),
    );
    text.extend(length.map(|length| format!("content-length: {length}")));
    let text = text.join("\r\n") + "\r\n\r\n";
    let _ = stream.write_all(text.as_bytes());
}

/// An image of one layer as a registry has it.
#[derive(Clone)]
pub struct Blobs {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layer: Vec<u8>,
}

impl Blobs {
    pub fn read(layout: &Path) -> Blobs {
        let image = oci_image::open(layout).unwrap();
        let read = |descriptor: &oci_image::Descriptor| {
            let mut bytes = Vec::new();
            image
                .blob(descriptor)
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            bytes
        };
        Blobs {
            manifest: image.manifest().bytes().to_vec(),
            config: read(&image.manifest().config),
            layer: read(&image.manifest().layers[0]),
        }
    }

    pub fn digest(bytes: &[u8]) -> String {
        oci_image::Digest::sha256(bytes).to_string()
    }

    /// Answers like a good registry; says whether it knew what to answer.
    pub fn serve(&self, request: &Seen, stream: &mut TcpStream) -> bool {
        if request.path == "/v2/" {
            reply(stream, 200, &[], b"{}");
            return true;
        }
        if request.path.contains("/manifests/") {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            reply(stream, 200, &[("content-type", kind)], &self.manifest);
            return true;
        }
        for blob in [&self.config, &self.layer] {
            if request
                .path
                .ends_with(&format!("/blobs/{}", Blobs::digest(blob)))
            {
                reply(stream, 200, &[], blob);
                return true;
            }
        }
        false
    }

    pub fn is_layer(&self, request: &Seen) -> bool {
        request
            .path
            .ends_with(&format!("/blobs/{}", Blobs::digest(&self.layer)))
    }
}

/// Files with certificates in PEM.
pub struct Certificates {
    pub authority: PathBuf,
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// An authority, and a certificate of it for this machine.
fn certificates() -> (rcgen::Certificate, rcgen::Certificate, KeyPair) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "test authority");
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    (authority, leaf, key)
}

/// Certificates as files in `dir`.
pub fn tls(dir: &Path) -> Certificates {
    let (authority, leaf, key) = certificates();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    Certificates {
        authority: write("authority.pem", authority.pem()),
        chain: write("chain.pem", leaf.pem()),
        key: write("key.pem", key.serialize_pem()),
    }
}

/// A token service as `docker-registry` knows them: everybody may pull; `me` with the password `secret` may do all.
pub struct TokenService {
    pub server: Server,
    /// The certificate by which the registry knows its tokens.
    pub authority: PathBuf,
}

impl TokenService {
    pub fn start(dir: &Path) -> TokenService {
        let (authority, leaf, key) = certificates();
        let path = dir.join("token-authority.pem");
        std::fs::write(&path, authority.pem()).unwrap();
        let chain = STANDARD.encode(leaf.der());
        let server = Server::start(move |request, _, stream| {
            let me = format!("Basic {}", STANDARD.encode("me:secret"));
            let all = match request.header("authorization") {
                None => false,
                Some(sent) if sent == me => true,
                Some(_) => return reply(stream, 401, &[], b""),
            };
            let query = request.path.split_once('?').map_or("", |(_, query)| query);
            let access: Vec<_> = query
                .split('&')
                .filter_map(|part| part.strip_prefix("scope="))
                .map(|scope| {
                    let scope = scope.replace("%2C", ",").replace("%2A", "*");
                    let mut parts = scope.splitn(2, ':');
                    let kind = parts.next().unwrap().to_owned();
                    let (name, actions) = parts.next().unwrap().rsplit_once(':').unwrap();
                    let actions: Vec<_> = actions
                        .split(',')
                        .filter(|action| all || *action == "pull")
                        .collect();
                    serde_json::json!({"type": kind, "name": name, "actions": actions})
                })
                .collect();
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_secs();
            let header = serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [chain]});
            let claims = serde_json::json!({
                "iss": "test issuer", "sub": "me", "aud": "test registry",
                "exp": now + 300, "nbf": now - 10, "iat": now, "jti": "1",
                "access": access,
            });
            let signed = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(header.to_string()),
                URL_SAFE_NO_PAD.encode(claims.to_string())
            );
            let signature = raw_signature(&key.sign(signed.as_bytes()).unwrap());
            let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
            let answer = serde_json::json!({"token": token, "expires_in": 300}).to_string();
            reply(stream, 200, &[], answer.as_bytes());
        });
        TokenService {
            server,
            authority: path,
        }
    }
}

/// The two numbers of an ECDSA signature, which X.509 writes in DER and JWT as 32 bytes each.
fn raw_signature(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut raw = Vec::new();
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        raw.resize(raw.len() + 32 - number.len(), 0);
        raw.extend_from_slice(number);
        rest = &rest[2 + length..];
    }
    raw
}
