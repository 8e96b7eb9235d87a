//! Streams between a controller and an agent or a gateway: in order, without loss, until they break;
//! and when they break, each end hears of it in its own time.

use crate::{
    net::Host,
    world::{Event, Packet, World},
};

#[derive(Debug)]
pub(crate) struct Pipe {
    /// Who opened it, and the controller.
    pub(crate) ends: [Host; 2],
    /// When the last packet to each end arrives: nothing overtakes it.
    last: [u64; 2],
    broken: bool,
}

impl World {
    pub(crate) fn open_pipe(&mut self, from: Host, to: Host) -> u64 {
        self.next_pipe += 1;
        let pipe = Pipe {
            ends: [from, to],
            last: [self.now; 2],
            broken: false,
        };
        self.pipes.insert(self.next_pipe, pipe);
        self.next_pipe
    }

    /// Sends along a pipe, from this end of it.
    pub(crate) fn pipe(&mut self, number: u64, from: Host, packet: Packet) {
        let Some(pipe) = self.pipes.get(&number).filter(|pipe| !pipe.broken) else {
            return;
        };
        let way = usize::from(pipe.ends[0] == from);
        let to = pipe.ends[way];
        if self.cuts.is_cut(from, to) {
            return self.break_pipe(number);
        }
        let at = (self.now + self.latency()).max(pipe_last(self, number, way) + 1);
        if let Some(pipe) = self.pipes.get_mut(&number) {
            pipe.last[way] = at;
        }
        let wait = at - self.now;
        let pipe = number;
        self.after(wait, Event::Piped { pipe, from, packet });
    }

    /// Nothing more arrives, and both ends will notice.
    pub(crate) fn break_pipe(&mut self, number: u64) {
        let Some(pipe) = self.pipes.get_mut(&number).filter(|pipe| !pipe.broken) else {
            return;
        };
        pipe.broken = true;
        for end in pipe.ends {
            let wait = self.rng.wait(400);
            self.after(wait, Event::PipeEnds(number, end));
        }
    }

    /// A machine or process is gone, and with it its ends of pipes.
    pub(crate) fn break_pipes_of(&mut self, host: Host) {
        let of: Vec<u64> = self
            .pipes
            .iter()
            .filter(|(_, pipe)| !pipe.broken && pipe.ends.contains(&host))
            .map(|(number, _)| *number)
            .collect();
        of.into_iter().for_each(|number| self.break_pipe(number));
    }

    pub(crate) fn piped(&mut self, number: u64, from: Host, packet: Packet) {
        let Some(pipe) = self.pipes.get(&number).filter(|pipe| !pipe.broken) else {
            return;
        };
        let to = pipe.ends[usize::from(pipe.ends[0] == from)];
        if self.cuts.is_cut(from, to) {
            return self.break_pipe(number);
        }
        match (to, packet) {
            (Host::Controller(id), Packet::Hello(report)) => {
                self.hello_arrives(id, number, *report);
            }
            (Host::Controller(id), Packet::Report(report)) => {
                self.report_arrives(id, number, *report);
            }
            (Host::Controller(id), Packet::Subscribe) => self.subscribes(id, number, from),
            (Host::Agent(id), Packet::Order(message)) => self.agent_hears(id, number, *message),
            (Host::Gateway(id), Packet::Routes(update)) => {
                self.gateway_hears_routes(id, number, &update);
            }
            (_, Packet::Closed) => {
                self.pipe_ends(number, to);
                self.pipes.remove(&number);
            }
            _ => {}
        }
    }

    pub(crate) fn pipe_ends(&mut self, number: u64, end: Host) {
        match end {
            Host::Controller(id) => self.controller_loses(id, number),
            Host::Agent(id) => self.agent_loses(id, number),
            Host::Gateway(id) => self.gateway_loses(id, number),
            Host::Client(_) => {}
        }
    }
}

fn pipe_last(world: &World, number: u64, way: usize) -> u64 {
    world.pipes[&number].last[way]
}
