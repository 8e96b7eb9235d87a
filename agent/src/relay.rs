//! Connections of gateways on other machines, passed on to instances' sockets byte by byte.
//!
//! Nothing is read of what passes: who may have a slot, and what a request is, stays between the
//! gateway and the instance. A connection serves as many invocations as the gateway likes and ends
//! with the instance, with the gateway's interest, or with this process.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use coracle_base::Conn;
use coracle_model::InstanceId;
use coracle_proto::relay::{self, Answer, PREAMBLE_BYTES};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    sync::Semaphore,
    time::timeout,
};

use crate::{instances::Instances, metrics};

const PREAMBLE_WITHIN: Duration = Duration::from_secs(10);
/// For each direction of a connection.
const BUFFER: usize = 16 * 1024;
/// Once an instance has ended its side, the gateway has this long to end its own.
const LINGER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Relay {
    instances: Arc<Instances>,
    permits: Semaphore,
}

impl Relay {
    /// `most`: connections at once.
    pub(crate) fn new(instances: Arc<Instances>, most: usize) -> Self {
        Self {
            instances,
            permits: Semaphore::new(most),
        }
    }

    /// Ends with the connection; both ends are closed when it is dropped.
    pub(crate) async fn serve(&self, mut conn: Conn) {
        let mut preamble = [0; PREAMBLE_BYTES];
        let read = timeout(PREAMBLE_WITHIN, conn.read_exact(&mut preamble)).await;
        let Ok(Ok(_)) = read else { return };
        let Some(instance) = relay::parse(&preamble) else {
            tracing::debug!("a connection began with a preamble of another version");
            return;
        };
        let opened = match self.permits.try_acquire() {
            Ok(permit) => tokio::select! {
                opened = self.open(instance) => opened.map(|stream| (stream, permit)),
                // A gateway says nothing before the answer, so this is its end.
                _ = conn.read_u8() => return,
            },
            Err(_) => Err(Answer::Full),
        };
        let answer = match &opened {
            Ok(_) => Answer::Open,
            Err(refusal) => *refusal,
        };
        metrics::relay_answered(answer);
        if let Err(error) = tell(&mut conn, answer).await {
            tracing::debug!(%instance, %error, "a gateway left before its answer");
            return;
        }
        match opened {
            Ok((stream, _permit)) => {
                let _counted = metrics::Relayed::new();
                splice(conn, stream).await;
            }
            Err(refusal) => tracing::debug!(%instance, ?refusal, "a connection was not relayed"),
        }
    }

    async fn open(&self, instance: InstanceId) -> Result<UnixStream, Answer> {
        let socket: PathBuf = self.instances.reach(instance).await?;
        UnixStream::connect(&socket).await.map_err(|error| {
            tracing::info!(%instance, %error, "an instance cannot be reached");
            Answer::Ending
        })
    }
}

async fn tell(conn: &mut Conn, answer: Answer) -> io::Result<()> {
    conn.write_all(&[answer.to_byte()]).await?;
    match answer {
        Answer::Open => conn.flush().await,
        _ => conn.shutdown().await,
    }
}

/// Ends when both sides have ended, each end having been passed on.
async fn splice(conn: Conn, mut stream: UnixStream) {
    let (mut from_gateway, mut to_gateway) = tokio::io::split(conn);
    let (mut from_instance, mut to_instance) = stream.split();
    let up = pass(&mut from_gateway, &mut to_instance);
    let down = pass(&mut from_instance, &mut to_gateway);
    tokio::pin!(up, down);
    tokio::select! {
        // The gateway has said all it will, or is gone; the instance ends when it has noticed.
        () = &mut up => down.await,
        // There is nobody left to read what the gateway may still say.
        () = &mut down => drop(timeout(LINGER, up).await),
    }
}

/// Passes bytes on until their end or a failure, and then the end. Why it failed is no news to
/// either side: the gateway asks for the instance's fate, and the instance waits for nobody.
async fn pass(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let written = async {
            to.write_all(&buffer[..length]).await?;
            to.flush().await
        };
        if written.await.is_err() {
            break;
        }
    }
    // Whoever is gone needs not be told.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The gateway's end and the instance's end of a spliced pair.
    async fn pair() -> (tokio::net::TcpStream, UnixStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = tokio::net::TcpStream::connect(address).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (ours, instance) = UnixStream::pair().unwrap();
        tokio::spawn(splice(Conn::Tcp(accepted), ours));
        (gateway, instance)
    }

    #[tokio::test]
    async fn bytes_and_half_closes_pass_both_ways() {
        let (mut gateway, mut instance) = pair().await;
        let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let asking = async {
            gateway.write_all(&sent).await.unwrap();
            gateway.shutdown().await.unwrap();
            let mut answer = Vec::new();
            gateway.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answering = async {
            let mut asked = Vec::new();
            instance.read_to_end(&mut asked).await.unwrap();
            instance.write_all(&asked).await.unwrap();
            instance.shutdown().await.unwrap();
        };
        let (answer, ()) = tokio::join!(asking, answering);
        assert!(answer == sent, "{} of {} bytes", answer.len(), sent.len());
    }

    #[tokio::test]
    async fn the_end_of_either_side_is_the_end_of_the_other() {
        let (mut gateway, instance) = pair().await;
        drop(instance);
        assert_eq!(gateway.read(&mut [0; 1]).await.unwrap(), 0);

        let (gateway, mut instance) = pair().await;
        // With an abort instead of an end.
        gateway.set_zero_linger().unwrap();
        drop(gateway);
        assert_eq!(instance.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
