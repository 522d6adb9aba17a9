//! The judging of a trip that has ended: the twin's words, and all RAM where the twin knows a part of it only.

use super::{Agent, Move, SessionError, in_words};
use crate::commands::{Answer, Command};
use crate::report::{Outcome, Verdict as RowVerdict, Verify};
use crate::witness::{Comparison, PAGES_AT_ONCE};
use whimbrel_machine::{Verdict, Verification};
use whimbrel_model::PAGE_BYTES;

impl Move<'_> {
    /// The twin's word: on the frozen source, and on the guest at the end.
    pub(super) fn verify(&self, here: &mut Agent, there: &mut Agent, outcome: Outcome) -> Verify {
        let skipped = |why: &str| Verify { scope: format!("not compared: {why}"), ..Verify::default() };
        if !self.plan.verify {
            return skipped("the experiment asks for no check");
        }
        let mut words: Vec<Result<Verification, SessionError>> = Vec::new();
        let mut note = None;
        let ask = |agent: &mut Agent| {
            agent.expect(&Command::Verify {}, |a| match a {
                Answer::Verified { verification } => Some(verification),
                _ => None,
            })
        };
        match outcome {
            Outcome::Completed => {
                let (frozen, end) = std::thread::scope(|scope| {
                    let frozen = scope.spawn(|| ask(here));
                    let end = ask(there);
                    (frozen.join(), end)
                });
                if matches!(&frozen, Ok(Ok(_))) && end.is_ok() {
                    match self.compare_ram(here, there) {
                        Ok(word) => words.extend(word.map(Ok)),
                        Err(error) => {
                            note = Some(format!("RAM beyond the twin's is not compared: {}", in_words(&error)))
                        }
                    }
                }
                // A source that is gone since has no word; the guest at the destination is judged all the same.
                words.extend(frozen.into_iter().filter(|word| word.is_ok() || end.is_err()));
                words.push(end);
            }
            Outcome::Aborted => words.push(ask(here)),
            _ => return skipped("the guest is whole nowhere"),
        }
        let mut verify = Verify { memory: RowVerdict::Equal, disk: RowVerdict::Equal, ..Verify::default() };
        if self.plan.guest.disk.is_none() {
            verify.disk = RowVerdict::Skipped;
        }
        for word in words {
            match word {
                Ok(word) => join(&mut verify, word),
                Err(error) => return skipped(&in_words(&error)),
            }
        }
        if let Some(note) = note {
            verify.scope = format!("{}; {note}", verify.scope);
        }
        verify
    }

    /// All RAM, the frozen source's against the destination's; `None` where the twin knows all of it, or pages were left
    /// behind.
    fn compare_ram(&self, here: &mut Agent, there: &mut Agent) -> Result<Option<Verification>, SessionError> {
        let ask = |agent: &mut Agent, first| {
            let command = Command::HashRam { first, count: PAGES_AT_ONCE };
            agent.expect(&command, |answer| match answer {
                Answer::Hashes { hashes, left_out } => Some(Some((hashes, left_out))),
                Answer::NoHashes { .. } => Some(None),
                _ => None,
            })
        };
        let mut comparison = Comparison::default();
        let pages = self.plan.guest.ram_bytes / PAGE_BYTES;
        for first in (0..pages).step_by(PAGES_AT_ONCE as usize) {
            let Some((destination, left_out)) = ask(there, first)? else { return Ok(None) };
            let Some((source, _)) = ask(here, first)? else { return Ok(None) };
            comparison.add(first, &source, &destination, &left_out);
        }
        Ok(Some(comparison.word(Vec::new())))
    }
}

/// Joins another comparison to what is known: different once is different.
fn join(verify: &mut Verify, word: Verification) {
    let worse = |known: RowVerdict, new: Verdict| match (known, new) {
        (RowVerdict::Different, _) | (_, Verdict::Different) => RowVerdict::Different,
        (known, _) => known,
    };
    verify.memory = worse(verify.memory, word.memory);
    verify.disk = worse(verify.disk, word.disk);
    if !verify.scope.is_empty() {
        verify.scope.push_str("; ");
    }
    verify.scope.push_str(&word.scope);
    verify.compared += word.compared;
    verify.excluded += word.excluded;
    verify.operations = word.operations;
    verify.first_difference = verify.first_difference.take().or(word.first_difference);
}
