//! The port against a management service that answers as each test says.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

use coracle_base::{Address, MemoryBus};
use coracle_model::{FunctionName, NamespaceName, ProjectName};
use coracle_proto::v1::management_server::{Management, ManagementServer};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use super::*;
use crate::config::Config;

type Answer<T> = Result<tonic::Response<T>, Status>;

#[derive(Default)]
struct Fake {
    /// Answers to the next writes, in order; then success.
    writes: Mutex<Vec<Answer<v1::WriteResponse>>>,
    ids: Mutex<Vec<Bytes>>,
    stored: Mutex<Vec<u8>>,
}

#[derive(Clone)]
struct Service(Arc<Fake>);

macro_rules! service {
    (
        answered { $($name:ident($request:ident: $input:ty, $fake:ident) -> $output:ty = $body:expr;)* }
        refused { $($other:ident($other_input:ty) -> $other_output:ty;)* }
    ) => {
        impl Management for Service {
            type GetArtifactStream = ReceiverStream<Result<v1::ArtifactChunk, Status>>;
            type BuildLogStream = ReceiverStream<Result<v1::BuildLogChunk, Status>>;
            $(
                fn $name<'a, 'b>(
                    &'a self,
                    $request: Request<$input>,
                ) -> Pin<Box<dyn Future<Output = Answer<$output>> + Send + 'b>>
                where
                    'a: 'b,
                    Self: 'b,
                {
                    let $fake = self.0.clone();
                    Box::pin($body)
                }
            )*
            $(
                fn $other<'a, 'b>(
                    &'a self,
                    _: Request<$other_input>,
                ) -> Pin<Box<dyn Future<Output = Answer<$other_output>> + Send + 'b>>
                where
                    'a: 'b,
                    Self: 'b,
                {
                    Box::pin(async { Err(Status::internal("not part of these tests")) })
                }
            )*
        }
    };
}

service! {
    answered {
    write(request: v1::WriteRequest, fake) -> v1::WriteResponse = async move {
        fake.ids.lock().unwrap().push(request.into_inner().write_id);
        let mut writes = fake.writes.lock().unwrap();
        if writes.is_empty() {
            return Ok(tonic::Response::new(v1::WriteResponse { refusal: None }));
        }
        writes.remove(0)
    };
    put_artifact(request: Streaming<v1::ArtifactChunk>, fake) -> v1::PutArtifactResponse =
        async move {
            let mut stream = request.into_inner();
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.message().await? {
                bytes.extend_from_slice(&chunk.data);
            }
            let digest = Digest::of(&bytes).to_wire();
            let size = bytes.len() as u64;
            *fake.stored.lock().unwrap() = bytes;
            Ok(tonic::Response::new(v1::PutArtifactResponse { digest, size }))
        };
    get_artifact(_request: v1::GetArtifactRequest, fake) -> ReceiverStream<Result<v1::ArtifactChunk, Status>> =
        async move {
            let (sender, receiver) = mpsc::channel(16);
            let bytes = fake.stored.lock().unwrap().clone();
            for piece in bytes.chunks(CHUNK) {
                let data = Bytes::copy_from_slice(piece);
                sender.send(Ok(v1::ArtifactChunk { data })).await.unwrap();
            }
            Ok(tonic::Response::new(ReceiverStream::new(receiver)))
        };
    }
    refused {
    get_token(v1::GetTokenRequest) -> v1::GetTokenResponse;
    list_tokens(v1::ListTokensRequest) -> v1::ListTokensResponse;
    list_projects(v1::ListProjectsRequest) -> v1::ListProjectsResponse;
    list_namespaces(v1::ListNamespacesRequest) -> v1::ListNamespacesResponse;
    get_function(v1::GetFunctionRequest) -> v1::GetFunctionResponse;
    list_functions(v1::ListFunctionsRequest) -> v1::ListFunctionsResponse;
    list_revisions(v1::ListRevisionsRequest) -> v1::ListRevisionsResponse;
    describe_function(v1::DescribeFunctionRequest) -> v1::DescribeFunctionResponse;
    list_keys(v1::ListKeysRequest) -> v1::ListKeysResponse;
    list_tasks(v1::ListTasksRequest) -> v1::ListTasksResponse;
    list_nodes(v1::ListNodesRequest) -> v1::ListNodesResponse;
    change_node(v1::ChangeNodeRequest) -> v1::WriteResponse;
    status(v1::StatusRequest) -> v1::StatusResponse;
    build_log(v1::BuildLogRequest) -> ReceiverStream<Result<v1::BuildLogChunk, Status>>;
    }
}

async fn port() -> (ControllerPort, Arc<Fake>) {
    let (bus, fake) = (MemoryBus::new(), Arc::new(Fake::default()));
    let incoming = Address::Memory(bus.clone()).listen().await.unwrap();
    let service = ManagementServer::new(Service(fake.clone()));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let shared = Shared::new(Config::new(vec![Address::Memory(bus)]));
    (ControllerPort::new(shared, vec![]), fake)
}

fn operation() -> Operation {
    Operation::CreateProject {
        name: "p".parse::<ProjectName>().unwrap(),
    }
}

#[tokio::test]
async fn a_write_is_repeated_under_its_own_id_until_it_is_answered() {
    let (port, fake) = port().await;
    *fake.writes.lock().unwrap() = vec![
        Err(Status::unavailable("election")),
        Err(Status::aborted("outcome unknown")),
    ];
    let id = WriteId(Uuid::new_v4());
    port.write(id, operation()).await.unwrap();
    assert_eq!(*fake.ids.lock().unwrap(), vec![id.to_wire(); 3]);
}

#[tokio::test]
async fn a_refusal_is_final_and_an_outcome_that_stays_unknown_is_said_to_be() {
    let (port, fake) = port().await;
    let refusal = Refusal::AlreadyExists("project p".into());
    let response = v1::WriteResponse {
        refusal: Some(refusal.clone().into()),
    };
    *fake.writes.lock().unwrap() = vec![Ok(tonic::Response::new(response))];
    let result = port.write(WriteId(Uuid::new_v4()), operation()).await;
    assert!(matches!(result, Err(PortError::Refused(r)) if r == refusal));
    assert_eq!(fake.ids.lock().unwrap().len(), 1);

    tokio::time::pause();
    *fake.writes.lock().unwrap() = (0..200)
        .map(|_| Err(Status::aborted("outcome unknown")))
        .collect();
    let result = port.write(WriteId(Uuid::new_v4()), operation()).await;
    assert!(matches!(result, Err(PortError::Unknown(_))), "{result:?}");
}

#[tokio::test]
async fn artifacts_come_back_whole_and_are_checked() {
    let (port, fake) = port().await;
    let bytes = Bytes::from(vec![7; 3 * CHUNK + 5]);
    let digest = port.put_artifact(bytes.clone()).await.unwrap();
    assert_eq!(port.artifact(digest).await.unwrap(), bytes);
    fake.stored.lock().unwrap()[0] = 8;
    assert!(matches!(
        port.artifact(digest).await,
        Err(PortError::Internal(_))
    ));
    let empty = port.put_artifact(Bytes::new()).await.unwrap();
    assert_eq!(empty, Digest::of(b""));
}

#[tokio::test]
async fn invoking_what_the_gateway_has_no_route_to_says_so() {
    let (port, _) = port().await;
    let function = FunctionRef {
        namespace: "ns".parse::<NamespaceName>().unwrap(),
        name: "f".parse::<FunctionName>().unwrap(),
    };
    let request = http::Request::new(Bytes::new());
    let invocation = Invocation {
        project: ProjectId::DEFAULT,
        function,
        request,
    };
    let response = port.invoke(invocation).await.unwrap();
    assert_eq!(response.headers()[respond::PLATFORM_ERROR], "not_deployed");
}
