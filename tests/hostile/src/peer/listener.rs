//! The connections of a hostile peer, and answers below HTTP/2 calls.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{Conduct, Shared, answers};
use crate::frames::{CONTINUATION, HEADERS, PING, SETTINGS, WINDOW_UPDATE, frame, put_header};

const WEB_SERVER: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

const SSH_SERVER: &[u8] = b"SSH-2.0-OpenSSH_9.6\r\n";

/// Frames in one write.
const BATCH: usize = 100;

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        connections.spawn(answer(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: TcpStream, shared: Arc<Shared>) {
    // These servers know neither TLS nor HTTP/2.
    let greeting = match shared.conduct {
        Conduct::WebServer => WEB_SERVER,
        Conduct::SshServer => SSH_SERVER,
        Conduct::BlackHole => {
            shared.count_attack();
            return std::future::pending().await;
        }
        Conduct::ClosesAtOnce => return shared.count_attack(),
        _ => {
            match &shared.tls {
                None => over(stream, shared).await,
                Some(tls) => {
                    let Some(config) = tls.server_config() else {
                        return;
                    };
                    let accepted = TlsAcceptor::from(config).accept(stream).await;
                    if shared.conduct == Conduct::OtherCertificate {
                        shared.count_attack();
                    }
                    if let Ok(stream) = accepted {
                        over(stream, shared).await;
                    }
                }
            }
            return;
        }
    };
    shared.count_attack();
    if shared.conduct == Conduct::WebServer {
        let _ = stream.read(&mut [0; 4096]).await;
    }
    let _ = stream.write_all(greeting).await;
    let _ = read_all(&mut stream).await;
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<u64> {
    tokio::io::copy(stream, &mut tokio::io::sink()).await
}

/// Answers on a connection, decrypted if it uses TLS.
async fn over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shared: Arc<Shared>,
) {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let flood = match shared.conduct {
        Conduct::PingFlood => frame(PING, 0, 0, &[7; 8]),
        Conduct::SettingsFlood => settings.clone(),
        Conduct::WindowOverflow => frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()),
        Conduct::EndlessHeaders => {
            let mut block = Vec::new();
            put_header(&mut block, "x-header", &[b'x'; 4_000]);
            frame(CONTINUATION, 0, 1, &block)
        }
        _ => return answers::serve(stream, shared).await,
    };
    // Waits for the client's preface and its first call.
    let mut buffer = [0; 64 * 1024];
    if stream.write_all(&settings).await.is_err() || stream.read(&mut buffer).await.is_err() {
        return;
    }
    if shared.conduct == Conduct::EndlessHeaders {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // `:status: 200`
        if stream.write_all(&frame(HEADERS, 0, 1, &[0x88])).await.is_err() {
            return;
        }
    }
    shared.count_attack();
    let batch = flood.repeat(BATCH);
    while stream.write_all(&batch).await.is_ok() && stream.flush().await.is_ok() {
        tokio::task::yield_now().await;
    }
}
