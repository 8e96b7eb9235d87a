//! Faults: what happens to the network and to machines while a seed runs.

use crate::{
    net::{Host, between},
    world::{Event, World},
};

/// A fault that ends by itself.
#[derive(Debug)]
pub(crate) enum Fault {
    /// These directions are cut until then.
    Cut(Vec<(Host, Host)>),
    /// One controller alone, on and off; the number counts down.
    Flapping {
        pairs: Vec<(Host, Host)>,
        cut: bool,
        left: u64,
    },
}

impl World {
    pub(crate) fn schedule_fault(&mut self) {
        let wait = self.rng.wait(self.profile.fault_every_ms);
        self.after(wait, Event::Fault);
    }

    pub(crate) fn fault(&mut self) {
        if self.quiet {
            return;
        }
        self.schedule_fault();
        let edge = if self.profile.shaky { 1_000 } else { 4_000 };
        if self.rng.chance(edge) {
            return self.edge_fault();
        }
        let partition =
            self.profile.partitions && (!self.profile.crashes || self.rng.chance(5_000));
        if partition {
            self.partition();
        } else if self.profile.crashes {
            self.power_goes();
        }
    }

    /// Something happens to agents and gateways.
    fn edge_fault(&mut self) {
        let agent = self.rng.between(1, self.profile.machines);
        let gateway = self.rng.between(1, self.profile.gateways);
        let controllers: Vec<Host> = (1..=self.profile.members).map(Host::Controller).collect();
        let lasts = self.rng.wait(self.profile.fault_lasts_ms);
        match self.rng.below(10) {
            0 => self.agent_crashes(agent, true),
            1 | 2 if self.profile.crashes => self.agent_crashes(agent, false),
            3 if self.profile.crashes => self.gateway_crashes(gateway),
            4 => {
                let some = *self.rng.pick(&controllers);
                self.begin_cut(between(&[Host::Agent(agent)], &[some]), lasts, "agent");
            }
            5 => {
                let pairs = between(&[Host::Agent(agent)], &controllers);
                self.begin_cut(pairs, lasts, "agent alone");
            }
            6 => {
                let pairs = between(&[Host::Gateway(gateway)], &controllers);
                self.begin_cut(pairs, lasts, "gateway alone");
            }
            7 => {
                let pairs = between(&[Host::Gateway(gateway)], &[Host::Agent(agent)]);
                self.begin_cut(pairs, lasts, "gateway and agent");
            }
            // A session breaks, no more.
            8 => self.break_pipes_of(Host::Agent(agent)),
            _ => {
                for agent in 1..=self.profile.machines {
                    self.break_pipes_of(Host::Agent(agent));
                }
            }
        }
    }

    fn power_goes(&mut self) {
        if self.rng.chance(1_500) {
            let id = self.some_leader().unwrap_or(1);
            let lasts = self.rng.between(100, 5_000);
            return self.pause(id, lasts);
        }
        if self.profile.blackouts && self.rng.chance(1_500) {
            self.say(|| "fault: power goes everywhere".to_owned());
            for id in 1..=self.profile.members {
                self.crash(id);
            }
            return;
        }
        // The leader more often than a follower: that is where the interesting state is.
        let leader = self.some_leader();
        let id = match leader {
            Some(leader) if self.rng.chance(4_000) => leader,
            _ => self.rng.between(1, self.profile.members),
        };
        self.crash(id);
    }

    fn partition(&mut self) {
        let controllers: Vec<Host> = (1..=self.profile.members).map(Host::Controller).collect();
        let leader = self.some_leader().map(Host::Controller);
        let chosen = match leader {
            Some(leader) if self.profile.shaky || self.rng.chance(6_000) => leader,
            _ => *self.rng.pick(&controllers),
        };
        let others: Vec<Host> = controllers
            .iter()
            .copied()
            .filter(|host| *host != chosen)
            .collect();
        let lasts = self.rng.wait(self.profile.fault_lasts_ms);
        let shape = if self.profile.shaky {
            0
        } else {
            self.rng.below(4)
        };
        match shape {
            0 => {
                // Alone, from the other controllers and now and then from some clients too.
                let mut far = others;
                if self.rng.chance(3_000) {
                    let clients = (0..self.profile.clients).map(Host::Client);
                    let cut: Vec<Host> = clients.filter(|_| self.rng.chance(5_000)).collect();
                    far.extend(cut);
                }
                if self.profile.shaky
                    && let Host::Controller(id) = chosen
                {
                    // It wakes up behind the cut, with a successor that it has not heard of.
                    let paused = self.rng.between(1_500, 4_000);
                    self.pause(id, paused);
                    self.shake(paused + 1_500);
                    self.begin_cut(between(&[chosen], &far), paused + 2_000, "alone");
                } else {
                    self.begin_cut(between(&[chosen], &far), lasts, "alone");
                }
            }
            1 => {
                // A bridge: two sides that only the chosen one reaches both of.
                let (left, right): (Vec<Host>, Vec<Host>) = others.iter().enumerate().fold(
                    (vec![], vec![]),
                    |(mut left, mut right), (at, host)| {
                        if at % 2 == 0 {
                            left.push(*host);
                        } else {
                            right.push(*host);
                        }
                        (left, right)
                    },
                );
                self.begin_cut(between(&left, &right), lasts, "bridge");
            }
            2 => {
                // One way: it hears and is not heard, or the other way round.
                let outward = self.rng.chance(5_000);
                let pairs = others
                    .iter()
                    .map(|other| {
                        if outward {
                            (chosen, *other)
                        } else {
                            (*other, chosen)
                        }
                    })
                    .collect();
                self.begin_cut(pairs, lasts, "one way");
            }
            _ => {
                let pairs = between(&[chosen], &others);
                self.say(|| format!("fault: {chosen} flaps"));
                let left = self.rng.between(2, 12);
                self.flap(pairs, false, left);
            }
        }
    }

    /// For so long, sessions of agents break again and again, and are opened anew at once.
    fn shake(&mut self, lasts: u64) {
        let mut wait = 0;
        while wait < lasts {
            wait += self.rng.between(5, 50);
            let agent = self.rng.between(1, self.profile.machines);
            self.after(wait, Event::Shake(agent));
        }
    }

    fn begin_cut(&mut self, pairs: Vec<(Host, Host)>, lasts: u64, shape: &str) {
        self.say(|| {
            let pairs: Vec<String> = pairs.iter().map(|(a, b)| format!("{a}>{b}")).collect();
            format!("fault: {shape}, {} for {lasts} ms", pairs.join(" "))
        });
        self.cuts.cut(&pairs);
        let number = self.next_fault;
        self.next_fault += 1;
        self.faults.insert(number, Fault::Cut(pairs));
        self.after(lasts, Event::FaultEnds(number));
    }

    fn flap(&mut self, pairs: Vec<(Host, Host)>, cut: bool, left: u64) {
        if cut {
            self.cuts.mend(&pairs);
        } else {
            self.cuts.cut(&pairs);
        }
        let number = self.next_fault;
        self.next_fault += 1;
        let cut = !cut;
        self.faults
            .insert(number, Fault::Flapping { pairs, cut, left });
        let wait = self.rng.between(50, 900);
        self.after(wait, Event::FaultEnds(number));
    }

    pub(crate) fn fault_ends(&mut self, number: u64) {
        match self.faults.remove(&number) {
            None => {}
            Some(Fault::Cut(pairs)) => self.cuts.mend(&pairs),
            Some(Fault::Flapping { pairs, cut, left }) => {
                if left > 0 && !self.quiet {
                    self.flap(pairs, cut, left - 1);
                } else if cut {
                    self.cuts.mend(&pairs);
                }
            }
        }
    }

    /// From now on nothing breaks.
    pub(crate) fn end_faults(&mut self) {
        self.quiet = true;
        for id in 1..=self.profile.members {
            self.resume(id);
        }
        let open: Vec<u64> = self.faults.keys().copied().collect();
        for number in open {
            self.fault_ends(number);
        }
        for id in 1..=self.profile.machines {
            self.agent_starts(id);
        }
        for id in 1..=self.profile.members {
            self.start(id);
            if let Some(running) = self.members.get_mut(&id).and_then(|m| m.up.as_mut()) {
                running.core.log_mut().lives = None;
            }
        }
    }
}
