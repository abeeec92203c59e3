//! The jobs that a forward holds.

use std::collections::VecDeque;

use super::event::{Now, Reason};
use super::job::Job;
use super::quarantine::Blame;

/// A job that was taken and is neither acknowledged nor given back.
#[derive(Debug)]
pub struct Held {
    pub job: Job,
    /// Earlier jobs have smaller ones.
    pub order: u64,
    pub arrived: Now,
    /// The number in its unique id where that is made of a random number and a counter; 0 while it has none.
    pub number: u64,
    /// The number of the server's process that was in its unique id when it was first submitted: it stays.
    pub epoch: Option<u64>,
    /// Submissions that may have run (synchronous).
    pub tries: u8,
    /// Times that it was refused alone.
    pub refusals: u8,
    /// Connections that the destination closed while it was unconfirmed on them beside others.
    pub breaks: u8,
    /// For connections that the destination closed while it was alone on them.
    pub blame: Blame,
    /// Why it goes to the reject queue.
    pub reason: Option<Box<Reason>>,
    /// Its source connection is gone, and with it the right to acknowledge it.
    pub gone: bool,
}

/// Slots that are kept while the source has no jobs.
const FEW: usize = 16;

/// See the module. A slot is a job's number while it is held.
#[derive(Debug, Default)]
pub struct Jobs {
    slots: Vec<Option<Held>>,
    /// The one that is free for the longest time comes first: slots then follow each other as their jobs do, which is how
    /// processors fetch memory ahead.
    free: VecDeque<u32>,
    orders: u64,
}

impl Jobs {
    pub fn insert(&mut self, job: Job, arrived: Now, epoch: Option<u64>) -> u32 {
        self.orders += 1;
        let held = Held {
            job,
            order: self.orders,
            arrived,
            number: 0,
            epoch,
            tries: 0,
            refusals: 0,
            breaks: 0,
            blame: Blame::default(),
            reason: None,
            gone: false,
        };
        match self.free.pop_front() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    *place = Some(held);
                }
                slot
            }
            None => {
                self.slots.push(Some(held));
                (self.slots.len() - 1) as u32
            }
        }
    }

    pub fn get(&self, slot: u32) -> Option<&Held> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Held> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub fn remove(&mut self, slot: u32) -> Option<Held> {
        let held = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push_back(slot);
        Some(held)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.slots.iter().flatten()
    }

    /// The slots of all jobs.
    pub fn all(&self) -> Vec<u32> {
        (0..self.slots.len() as u32).filter(|&slot| self.get(slot).is_some()).collect()
    }

    /// Gives memory back when nothing is held.
    pub fn rest(&mut self) {
        if self.free.len() == self.slots.len() {
            *self = Jobs { orders: self.orders, ..Jobs::default() };
        }
    }

    /// The same where the source is asleep and it is worth it: few jobs come again soon.
    pub fn rest_after_many(&mut self, asleep: bool) {
        if asleep && self.slots.len() > FEW {
            self.rest();
        }
    }

    /// Puts jobs back into a queue that is in the order of arrival.
    pub fn put_back(&self, queue: &mut VecDeque<u32>, slots: &[u32]) {
        let order = |slot: u32| self.get(slot).map_or(0, |held| held.order);
        for &slot in slots.iter().rev() {
            match queue.partition_point(|&other| order(other) < order(slot)) {
                0 => queue.push_front(slot),
                position => queue.insert(position, slot),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five jobs in the order of their arrival.
    fn five() -> (Jobs, Vec<u32>) {
        let mut jobs = Jobs::default();
        let slots = (0..5).map(|_| jobs.insert(Job::of(b"H:host:1", b"", b"data"), Now::ZERO, None)).collect();
        (jobs, slots)
    }

    #[test]
    fn a_slot_is_a_jobs_number_while_it_is_held_and_used_again_afterwards() {
        let (mut jobs, slots) = five();
        assert_eq!(jobs.all(), slots);
        assert_eq!(jobs.remove(slots[1]).map(|held| held.order), Some(2));
        assert!(jobs.remove(slots[1]).is_none() && jobs.get(slots[1]).is_none() && jobs.get_mut(slots[1]).is_none());
        assert!(jobs.get(99).is_none() && jobs.get_mut(99).is_none() && jobs.remove(99).is_none());
        assert_eq!(jobs.all(), [slots[0], slots[2], slots[3], slots[4]]);
        assert_eq!(jobs.iter().map(|held| held.order).sum::<u64>(), 1 + 3 + 4 + 5);
        assert_eq!(jobs.insert(Job::of(b"H:host:1", b"", b"data"), Now::ZERO, None), slots[1]);
        assert_eq!(jobs.get(slots[1]).map(|held| held.order), Some(6));
    }

    #[test]
    fn memory_is_given_back_when_nothing_is_held_and_later_jobs_are_still_later() {
        let (mut jobs, slots) = five();
        jobs.rest();
        assert_eq!(jobs.all(), slots, "held jobs stay");
        for slot in slots {
            jobs.remove(slot);
        }
        jobs.rest();
        assert_eq!((jobs.slots.capacity(), jobs.free.capacity()), (0, 0));
        let slot = jobs.insert(Job::of(b"H:host:1", b"", b"data"), Now::ZERO, None);
        assert_eq!(jobs.get(slot).map(|held| held.order), Some(6));
    }

    #[test]
    fn few_slots_are_kept() {
        let mut jobs = Jobs::default();
        for count in [FEW, FEW + 1] {
            let slots: Vec<_> =
                (0..count).map(|_| jobs.insert(Job::of(b"H:host:1", b"", b""), Now::ZERO, None)).collect();
            for slot in slots {
                jobs.remove(slot);
            }
            jobs.rest_after_many(false);
            assert!(jobs.slots.capacity() > 0);
            jobs.rest_after_many(true);
            assert_eq!(jobs.slots.capacity() > 0, count == FEW);
        }
    }

    #[test]
    fn jobs_that_are_put_back_stand_where_they_arrived() {
        for (queue, back) in [
            (vec![], vec![0, 1, 2, 3, 4]),
            (vec![4], vec![0, 1, 2, 3]),
            (vec![0, 2, 4], vec![1, 3]),
            (vec![1, 3], vec![0, 2, 4]),
        ] {
            let (jobs, slots) = five();
            let mut queue: VecDeque<u32> = queue.into_iter().map(|index: usize| slots[index]).collect();
            jobs.put_back(&mut queue, &back.into_iter().map(|index: usize| slots[index]).collect::<Vec<_>>());
            assert_eq!(queue, slots);
        }
    }
}
