//! The judging of a trip that has ended: the twin's words, and all RAM where the twin knows a part of it only; of a guest
//! that its user brought all RAM and all blocks, for it has no twin.

use super::{Agent, Move, SessionError, in_words};
use crate::commands::{Answer, Command, Software};
use crate::report::{Outcome, Verdict as RowVerdict, Verify};
use crate::witness::{Comparison, HASHES_AT_ONCE, LeftOut};
use whimbrel_machine::{Verdict, Verification};
use whimbrel_model::{Family, PAGE_BYTES};

impl Move<'_> {
    /// The twin's word: on the frozen source, and on the guest at the end. Of a guest that a hypervisor's own migration has
    /// moved, as both its ends say, and that has `ended_there`, the judge is asked too: its twin goes on.
    pub(super) fn verify(&self, here: &mut Agent, there: &mut Agent, outcome: Outcome, ended_there: bool) -> Verify {
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
                    match self.compare_all(here, there) {
                        Ok(found) => words.extend(found.into_iter().map(Ok)),
                        Err(error) => {
                            note = Some(format!("what the twin doesn't know is not compared: {}", in_words(&error)))
                        }
                    }
                }
                // A source that is gone since has no word; the guest at the destination is judged all the same.
                words.extend(frozen.into_iter().filter(|word| word.is_ok() || end.is_err()));
                words.push(end);
            }
            Outcome::Aborted => words.push(ask(here)),
            Outcome::Lost if ended_there && self.plan.own.is_some() => words.push(ask(there)),
            _ => return skipped("the guest is whole nowhere"),
        }
        let mut verify = Verify::default();
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

    /// The frozen source against the destination, where the twin can't tell. That a comparison is impossible is a word only
    /// where no twin has one.
    fn compare_all(&self, here: &mut Agent, there: &mut Agent) -> Result<Vec<Verification>, SessionError> {
        let guest = &self.plan.guest;
        let brought = matches!(guest.software, Software::Brought(_));
        let mut words = Vec::new();
        match compare(Family::Memory, guest.ram_bytes / PAGE_BYTES, here, there)? {
            Ok(word) => words.push(word),
            Err(why) if brought => words.push(Verification::skipped(format!("RAM is not compared: {why}"))),
            Err(_) => {}
        }
        if let Some(disk) = guest.disk.filter(|_| brought) {
            let found = compare(Family::Disk, disk.bytes / disk.block_bytes, here, there)?;
            let skipped = |why| Verification::skipped(format!("the disk is not compared: {why}"));
            words.push(found.unwrap_or_else(skipped));
        }
        Ok(words)
    }
}

/// All pages or blocks, the frozen source's against the destination's; or why they can't be compared.
fn compare(
    family: Family,
    units: u64,
    here: &mut Agent,
    there: &mut Agent,
) -> Result<Result<Verification, String>, SessionError> {
    let ask = |agent: &mut Agent, first| {
        let command = Command::Hash { family, first, count: HASHES_AT_ONCE };
        agent.expect(&command, |answer| match answer {
            Answer::Hashes { hashes, left_out } => Some(Ok((hashes, left_out))),
            Answer::NoHashes { why } => Some(Err(why)),
            _ => None,
        })
    };
    let mut comparison = Comparison::of(family);
    for first in (0..units).step_by(HASHES_AT_ONCE as usize) {
        match (ask(there, first)?, ask(here, first)?) {
            (Ok((destination, written)), Ok((source, not_sent))) => {
                comparison.add(first, &source, &destination, &LeftOut { written: &written, not_sent: &not_sent });
            }
            (Err(why), _) | (_, Err(why)) => return Ok(Err(why)),
        }
    }
    Ok(Ok(comparison.word()))
}

/// Joins another comparison to what is known: different once is different, and equal once is more than nothing.
fn join(verify: &mut Verify, word: Verification) {
    let worse = |known: RowVerdict, new: Verdict| match (known, new) {
        (RowVerdict::Different, _) | (_, Verdict::Different) => RowVerdict::Different,
        (RowVerdict::Equal, _) | (_, Verdict::Equal) => RowVerdict::Equal,
        _ => RowVerdict::Skipped,
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
