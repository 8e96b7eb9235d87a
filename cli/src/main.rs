//! The `coracle` binary: server roles and the client's commands.

#![forbid(unsafe_code)]

#[macro_use]
mod output;

mod admin;
mod api;
mod commands;
mod data;
mod error;
mod membership;
mod roles;
mod settings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::CliError;

/// Functions on your own machines.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, about, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 not found, \
4 not authorised, 5 conflict, 6 timed out waiting, 7 the function answered 400 or above \
(invoke --fail), 8 no server answers.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run controller, agent and gateway in one process
    Up(Box<settings::RawSettings>),
    /// Run a controller
    Controller(Box<settings::RawSettings>),
    /// Run an agent: containers on this node
    Agent(Box<settings::RawSettings>),
    /// Run a gateway: invocations and management APIs over HTTP
    Gateway(Box<settings::RawSettings>),
    /// Remove everything that a stopped server left on this machine: containers, network, sockets
    Down(commands::down::Down),
    /// Build and list runtime images
    Runtime(commands::runtime::Runtime),
    /// Deploy, call and look at functions
    Fn(commands::function::FunctionCommand),
    /// Namespaces
    Ns(commands::namespace::NamespaceCommand),
    /// Keys of functions, and credentials for the clouds' own clients
    Key(commands::key::KeyCommand),
    /// Nodes
    Node(commands::node::NodeCommand),
    /// Clusters of several machines: make one, look at its controllers, change them
    Cluster(commands::cluster::ClusterCommand),
    /// Versions of this program and of the server
    Version(commands::version::Version),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle: {error}");
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Up(raw) => roles::up(raw.check()?),
        Command::Controller(raw) => roles::controller(raw.check()?),
        Command::Agent(raw) => roles::agent(raw.check()?),
        Command::Gateway(raw) => roles::gateway(raw.check()?),
        Command::Down(down) => client(down.run()),
        Command::Runtime(runtime) => client(runtime.run()),
        Command::Fn(function) => client(function.run()),
        Command::Ns(namespace) => client(namespace.run()),
        Command::Key(key) => client(key.run()),
        Command::Node(node) => client(node.run()),
        Command::Cluster(cluster) => client(cluster.run()),
        Command::Version(version) => client(version.run()),
    }
}

/// Client commands need no threads of their own.
fn client(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed("cannot start", error))?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }

    /// Every command that prints a result takes `-o`, and no other one does.
    #[test]
    fn whatever_prints_a_result_can_print_it_for_programs() {
        const SILENT: [&str; 8] = [
            "up",
            "controller",
            "agent",
            "gateway",
            "down",
            // Steps on this machine, told of on standard error.
            "cluster recover",
            "cluster snapshot save",
            "cluster snapshot restore",
        ];
        fn check(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands().filter(|c| c.get_name() != "help") {
                let path = format!("{path} {}", verb.get_name());
                if verb.has_subcommands() {
                    check(verb, &path);
                    continue;
                }
                let output = verb.get_arguments().find(|a| a.get_id() == "output");
                if SILENT.contains(&path.trim()) {
                    assert!(output.is_none(), "{path}");
                    continue;
                }
                let output = output.unwrap_or_else(|| panic!("{path} has no --output"));
                assert_eq!(output.get_short(), Some('o'), "{path}");
                let values = output.get_possible_values();
                for format in ["table", "json", "yaml"] {
                    let known = values.iter().any(|value| value.matches(format, false));
                    assert!(known, "{path} does not know -o {format}");
                }
            }
        }
        check(&super::Cli::command(), "");
    }

    #[test]
    fn an_unknown_cloud_is_answered_with_those_that_there_are() {
        let line = "coracle key create --cloud nimbus -o env";
        let error = super::Cli::try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error.to_string().contains("possible values: gcore"),
            "{error}"
        );
    }

    #[test]
    fn spellings_of_before_still_work() {
        for line in [
            "coracle fn logs hello --json",
            "coracle key create door -o plain",
            "coracle key create door -o json",
        ] {
            let parsed = super::Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }

    /// An argument that shares its name with a global one of another type only shows when both
    /// are read, which the consistency check does not do.
    #[test]
    fn the_body_of_a_call_and_the_data_directory_are_two_things() {
        for line in [
            "coracle fn invoke hello -d {}",
            "coracle fn invoke hello --body {} --data /srv/coracle",
            "coracle fn --data /srv/coracle invoke hello --body-file -",
        ] {
            let parsed = super::Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
    }
}
