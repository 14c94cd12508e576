//! How a member without data asks to be let into a cluster that exists, in bytes, and who is asking.
//!
//! Any member may be asked; only the leader decides, and what it decides is in the membership. So there is
//! nothing to keep: whoever still wants to come in asks again, also after the leader has changed.

use std::collections::BTreeMap;

use bytes::BufMut;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::rpc::Body;
use super::types::{Member, NodeId};
use crate::codec::{Malformed, Reader, put_blob};
use crate::limits::{FORGET_APPLICANT_AFTER, MAX_APPLICANTS};

/// A member's request to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    pub node_id: NodeId,
    pub member: Member,
    /// A member has passed it on to whom it takes for the leader: it goes no further.
    pub is_passed_on: bool,
}

/// What an applicant is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Whoever was asked is blank too.
    NoCluster,
    /// Nobody can decide now.
    NoLeader,
    /// It will be let in once the member of that name has been down for long enough.
    Waiting,
    /// Its Raft id is in the membership.
    Admitted,
    /// The membership knows no member of that name.
    NotListed,
    /// The member of that name is alive: it has answered since this application came in.
    Alive { peer_address: String },
}

impl Application {
    pub fn encode(&self) -> Body {
        Body::of(|out| {
            out.put_u64_le(self.node_id);
            self.member.put(out);
            out.put_u8(self.is_passed_on as u8);
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "application");
        let node_id = reader.u64()?;
        let member = Member::read(&mut reader)?;
        let is_passed_on = reader.bool()?;
        reader.finish()?;
        Ok(Application { node_id, member, is_passed_on })
    }
}

impl Verdict {
    pub fn encode(&self) -> Body {
        Body::of(|out| match self {
            Verdict::NoCluster => out.put_u8(0),
            Verdict::NoLeader => out.put_u8(1),
            Verdict::Waiting => out.put_u8(2),
            Verdict::Admitted => out.put_u8(3),
            Verdict::NotListed => out.put_u8(4),
            Verdict::Alive { peer_address } => {
                out.put_u8(5);
                put_blob(out, peer_address.as_bytes());
            }
        })
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "answer to an application");
        Ok(match reader.u8()? {
            0 => Verdict::NoCluster,
            1 => Verdict::NoLeader,
            2 => Verdict::Waiting,
            3 => Verdict::Admitted,
            4 => Verdict::NotListed,
            5 => Verdict::Alive { peer_address: reader.text()?.to_owned() },
            _ => return Err(reader.malformed()),
        })
    }
}

/// Who asks a leader to be let in.
#[derive(Default)]
pub struct Applicants(Mutex<BTreeMap<NodeId, Applicant>>);

struct Applicant {
    member: Member,
    first_asked: Instant,
    last_asked: Instant,
}

impl Applicants {
    /// Notes that `application` was made now, and says since when it is being made. The applicant may have moved
    /// since it asked before. One too many is not noted; it will be, when it is made again and others have been let in
    /// or have gone.
    pub fn note(&self, application: &Application) -> Instant {
        let now = Instant::now();
        let mut applicants = self.0.lock();
        applicants.retain(|_, applicant| applicant.last_asked.elapsed() < FORGET_APPLICANT_AFTER);
        if let Some(known) = applicants.get_mut(&application.node_id) {
            known.last_asked = now;
            known.member = application.member.clone();
            return known.first_asked;
        }
        if applicants.len() < MAX_APPLICANTS {
            let member = application.member.clone();
            let applicant = Applicant { member, first_asked: now, last_asked: now };
            applicants.insert(application.node_id, applicant);
        }
        now
    }

    /// Those who still ask, the most patient first.
    pub fn asking(&self) -> Vec<(NodeId, Member)> {
        let mut applicants = self.0.lock();
        applicants.retain(|_, applicant| applicant.last_asked.elapsed() < FORGET_APPLICANT_AFTER);
        let mut asking: Vec<_> = applicants.iter().collect();
        asking.sort_by_key(|(node_id, applicant)| (applicant.first_asked, **node_id));
        asking.into_iter().map(|(node_id, applicant)| (*node_id, applicant.member.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(body: &Body) -> Vec<u8> {
        body.pieces().flatten().copied().collect()
    }

    fn application(node_id: NodeId) -> Application {
        let member = Member { name: "m1".into(), peer_address: "p".into(), client_url: "c".into() };
        Application { node_id, member, is_passed_on: true }
    }

    #[test]
    fn applications_and_verdicts_come_back_as_they_were_sent() {
        let sent = application(7);
        assert_eq!(Application::decode(&bytes(&sent.encode())).unwrap(), sent);
        assert!(Application::decode(&bytes(&sent.encode())[1..]).is_err());
        for verdict in [
            Verdict::NoCluster,
            Verdict::NoLeader,
            Verdict::Waiting,
            Verdict::Admitted,
            Verdict::NotListed,
            Verdict::Alive { peer_address: "here:1".into() },
        ] {
            assert_eq!(Verdict::decode(&bytes(&verdict.encode())).unwrap(), verdict);
        }
        assert!(Verdict::decode(&[6]).is_err());
    }

    #[test]
    fn an_applicant_that_moves_is_known_where_it_asked_last() {
        let applicants = Applicants::default();
        applicants.note(&application(9));
        let mut moved = application(9);
        moved.member.peer_address = "elsewhere".into();
        applicants.note(&moved);
        assert_eq!(applicants.asking(), [(9, moved.member)]);
    }

    #[tokio::test(start_paused = true)]
    async fn applicants_are_bounded_and_forgotten_when_they_stop_asking() {
        let applicants = Applicants::default();
        let begin = Instant::now();
        assert_eq!(applicants.note(&application(9)), begin);
        tokio::time::advance(FORGET_APPLICANT_AFTER / 2).await;
        assert_eq!(applicants.note(&application(9)), begin, "it has been asking since then");
        (0..2 * MAX_APPLICANTS as u64).for_each(|node_id| {
            applicants.note(&application(100 + node_id));
        });
        let asking = applicants.asking();
        assert_eq!((asking.len(), asking[0].0), (MAX_APPLICANTS, 9));
        tokio::time::advance(FORGET_APPLICANT_AFTER).await;
        assert!(applicants.asking().is_empty());
    }
}
