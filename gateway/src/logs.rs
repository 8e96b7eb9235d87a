//! A function's log lines, gathered from the nodes that have some.
//!
//! A node that does not answer, or breaks off, is left out with a warning in our own log: the lines
//! of the others are worth more than an error.

use std::time::Duration;

use coracle_facades::port::{LogStream, PortError};
use coracle_model::{LogLine, NodeId};
use coracle_proto::{ConvertError, v1};
use futures_util::{StreamExt, future::join_all, stream};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Status, Streaming};

use crate::nodes::Nodes;

const OPEN: Duration = Duration::from_secs(5);
/// How long a following reader waits for every node's past before it shows what it has.
const GATHER: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct NodeStream {
    node: NodeId,
    batches: Streaming<v1::LogBatch>,
}

/// Asks all of them at once.
pub(crate) async fn open(
    nodes: &Nodes,
    from: &[NodeId],
    request: &v1::LogsRequest,
) -> Vec<NodeStream> {
    let opening = from.iter().map(|&node| async move {
        let mut client = nodes.client(node)?;
        match timeout(OPEN, client.logs(request.clone())).await {
            Ok(Ok(stream)) => Some(NodeStream {
                node,
                batches: stream.into_inner(),
            }),
            Ok(Err(status)) => {
                tracing::warn!(%node, %status, "a node's logs are left out");
                None
            }
            Err(_) => {
                tracing::warn!(%node, "a node's logs are left out: no answer");
                None
            }
        }
    });
    join_all(opening).await.into_iter().flatten().collect()
}

fn lines(batch: v1::LogBatch) -> Result<Vec<LogLine>, PortError> {
    let convert = |line: v1::LogLine| {
        LogLine::try_from(line).map_err(|e: ConvertError| PortError::Internal(e.to_string()))
    };
    batch.lines.into_iter().map(convert).collect()
}

fn broken(status: &Status) -> PortError {
    PortError::Unavailable(format!("a node's log broke off: {}", status.message()))
}

/// The past, merged by time and cut to the newest `tail` lines; then nothing. An error when every
/// node broke off.
pub(crate) async fn past(streams: Vec<NodeStream>, tail: usize) -> Result<LogStream, PortError> {
    let reading = streams.into_iter().map(|mut stream| async move {
        let mut read = Vec::new();
        let status = loop {
            match stream.batches.message().await {
                Ok(Some(batch)) => read.extend(lines(batch)?),
                Ok(None) => break None,
                Err(status) => {
                    tracing::warn!(node = %stream.node, %status, "a node's log broke off");
                    break Some(status);
                }
            }
        };
        Ok::<_, PortError>((read, status))
    });
    let (mut all, mut whole, mut last) = (Vec::new(), 0, None);
    for read in join_all(reading).await {
        let (lines, status) = read?;
        all.extend(lines);
        whole += usize::from(status.is_none());
        last = status.or(last);
    }
    match last {
        Some(status) if whole == 0 => Err(broken(&status)),
        _ => Ok(Box::pin(stream::iter([Ok(newest(all, tail))]))),
    }
}

fn newest(mut all: Vec<LogLine>, tail: usize) -> Vec<LogLine> {
    all.sort_by_key(|line| line.at_nanos);
    all.split_off(all.len().saturating_sub(tail))
}

/// The past of all nodes merged by time, as far as it arrives soon; then lines as they come. Two
/// nodes' lines of the same moment may then arrive in either order. Ends with the last node's.
pub(crate) async fn follow(
    mut streams: Vec<NodeStream>,
    tail: usize,
) -> Result<LogStream, PortError> {
    if streams.len() == 1
        && let Some(only) = streams.pop()
    {
        let batches = only.batches;
        return Ok(Box::pin(
            batches.map(|batch| batch.map_err(|s| broken(&s)).and_then(lines)),
        ));
    }
    let each = streams.into_iter().map(|NodeStream { node, batches }| {
        Box::pin(batches.filter_map(move |batch| async move {
            batch
                .inspect_err(|status| {
                    tracing::warn!(%node, %status, "a node's log broke off");
                })
                .ok()
        }))
    });
    let mut merged = stream::select_all(each);
    let mut first = Vec::new();
    let until = Instant::now() + GATHER;
    while let Ok(Some(batch)) = timeout_at(until, merged.next()).await {
        first.extend(lines(batch)?);
    }
    let first = stream::iter([Ok(newest(first, tail.max(1)))]);
    Ok(Box::pin(first.chain(merged.map(lines))))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use coracle_base::Address;
    use coracle_proto::v1::node_service_server::{NodeService, NodeServiceServer};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::{Request, Response};
    use uuid::Uuid;

    use super::*;

    type Batches = mpsc::Sender<Result<v1::LogBatch, Status>>;

    /// A node whose log is what the test sends.
    struct Node(Mutex<Option<mpsc::Receiver<Result<v1::LogBatch, Status>>>>);

    #[tonic::async_trait]
    impl NodeService for Node {
        type LogsStream = ReceiverStream<Result<v1::LogBatch, Status>>;

        async fn logs(
            &self,
            _: Request<v1::LogsRequest>,
        ) -> Result<Response<Self::LogsStream>, Status> {
            let reader = self.0.lock().unwrap().take();
            let reader = reader.ok_or_else(|| Status::internal("read once"))?;
            Ok(Response::new(ReceiverStream::new(reader)))
        }

        async fn await_instance(
            &self,
            _: Request<v1::AwaitInstanceRequest>,
        ) -> Result<Response<v1::AwaitInstanceResponse>, Status> {
            Err(Status::unimplemented("only logs here"))
        }

        async fn kill_instance(
            &self,
            _: Request<v1::KillInstanceRequest>,
        ) -> Result<Response<v1::KillInstanceResponse>, Status> {
            Err(Status::unimplemented("only logs here"))
        }
    }

    /// Nodes on TCP, and one more that nobody serves; and what each of the served ones says.
    async fn nodes<const N: usize>() -> (Nodes, Vec<NodeId>, [Batches; N]) {
        let (known, mut ids) = (Nodes::default(), Vec::new());
        let mut logs = Vec::new();
        for number in 0..N {
            let (log, reader) = mpsc::channel(16);
            let node = Node(Mutex::new(Some(reader)));
            let incoming = Address::Tcp("127.0.0.1:0".into()).listen().await.unwrap();
            let address = format!("http://{}", incoming.local_addr().unwrap());
            tokio::spawn(
                tonic::transport::Server::builder()
                    .add_service(NodeServiceServer::new(node))
                    .serve_with_incoming(incoming),
            );
            let id = NodeId(Uuid::from_u128(number as u128 + 1));
            known.learn(id, "", &address);
            ids.push(id);
            logs.push(log);
        }
        let nobody = NodeId(Uuid::from_u128(99));
        known.learn(nobody, "", "unix:/nowhere/at/all");
        ids.push(nobody);
        (known, ids, logs.try_into().unwrap())
    }

    fn batch(instance: u128, at: &[u64]) -> v1::LogBatch {
        let line = |at: &u64| {
            let line = LogLine {
                at_nanos: *at,
                instance: coracle_model::InstanceId(Uuid::from_u128(instance)),
                stream: coracle_model::LogStream::Stdout,
                request: None,
                message: format!("{instance}"),
            };
            v1::LogLine::from(line)
        };
        v1::LogBatch {
            lines: at.iter().map(line).collect(),
        }
    }

    async fn read(stream: &mut LogStream) -> Vec<u64> {
        let lines = stream.next().await.expect("more").expect("no error");
        lines.iter().map(|line| line.at_nanos).collect()
    }

    fn break_off(node: &Batches) {
        node.try_send(Err(Status::unavailable("gone"))).unwrap();
    }

    #[tokio::test]
    async fn the_past_of_two_nodes_is_one_by_time_and_the_newest_of_it() {
        for broken in [false, true] {
            let (known, ids, [one, two]) = nodes::<2>().await;
            one.try_send(Ok(batch(1, &[10, 30]))).unwrap();
            one.try_send(Ok(batch(1, &[50]))).unwrap();
            two.try_send(Ok(batch(2, &[20, 40]))).unwrap();
            let streams = open(&known, &ids, &v1::LogsRequest::default()).await;
            assert_eq!(streams.len(), 2, "the one that is away is left out");
            if broken {
                break_off(&two);
            }
            drop((one, two));
            let mut all = past(streams, 4).await.unwrap();
            assert_eq!(read(&mut all).await, [20, 30, 40, 50]);
            assert!(all.next().await.is_none());
        }
    }

    #[tokio::test]
    async fn when_every_node_broke_off_there_is_no_answer() {
        let (known, ids, [one, two]) = nodes::<2>().await;
        let streams = open(&known, &ids, &v1::LogsRequest::default()).await;
        break_off(&one);
        break_off(&two);
        let error = past(streams, 4).await.err().expect("nothing was whole");
        assert!(matches!(error, PortError::Unavailable(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_node_that_breaks_off_takes_nothing_from_the_others() {
        let (known, ids, [one, two]) = nodes::<2>().await;
        one.try_send(Ok(batch(1, &[10, 30]))).unwrap();
        two.try_send(Ok(batch(2, &[20, 40]))).unwrap();
        let streams = open(&known, &ids, &v1::LogsRequest::default()).await;
        let mut following = follow(streams, 3).await.unwrap();
        assert_eq!(read(&mut following).await, [20, 30, 40]);
        break_off(&one);
        two.send(Ok(batch(2, &[60]))).await.unwrap();
        assert_eq!(read(&mut following).await, [60]);
    }
}
