//! What the source owes: each GRAB_JOB_UNIQ and ECHO_REQ is answered, in this order.

use super::Now;

/// See the module.
#[derive(Debug, Default)]
pub struct Owed {
    requests: u64,
    answers: u64,
    /// Those of `requests` that no thread has begun to write.
    unsent: u64,
    /// When something was sent last while nothing that had been sent was owed.
    since: Now,
    /// A request whose answer will tell that the server was there when it was sent: how many were sent with it, and when.
    sample: Option<(u64, Now)>,
    answered_at: Now,
}

impl Owed {
    /// Requests so far, those that are to be sent counted in.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Answers that came so far.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Since when the server owes something. What nobody has written, as all threads are busy, it does not.
    pub fn since(&self) -> Option<Now> {
        self.is_awaited().then_some(self.since)
    }

    fn is_awaited(&self) -> bool {
        self.answers < self.requests - self.unsent
    }

    /// When a request was sent that is answered: the server was there then or later. Zero where none was.
    pub fn answered_at(&self) -> Now {
        self.answered_at
    }

    /// So many more requests are to be sent.
    pub fn request(&mut self, requests: usize, now: Now) {
        if requests > 0 {
            self.requests += requests as u64;
            self.unsent += requests as u64;
            self.sample.get_or_insert((self.requests, now));
        }
    }

    /// A thread writes all that there is.
    pub fn sent(&mut self, now: Now) {
        if !self.is_awaited() {
            self.since = now;
        }
        self.unsent = 0;
    }

    /// One more, which is to tell soon that the server is there.
    pub fn ask(&mut self, now: Now) {
        self.sample = None;
        self.request(1, now);
    }

    /// A request was answered. `false` where none was owed.
    pub fn answered(&mut self) -> bool {
        self.answers += 1;
        if let Some((_, at)) = self.sample.take_if(|(requests, _)| *requests <= self.answers) {
            self.answered_at = at;
        }
        self.answers <= self.requests
    }

    pub fn is_none(&self) -> bool {
        self.answers >= self.requests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::driver::seconds;

    #[test]
    fn nothing_is_owed_until_a_request_and_after_its_answer() {
        let mut owed = Owed::default();
        assert!(owed.is_none());
        owed.request(0, seconds(1));
        owed.sent(seconds(1));
        assert_eq!((owed.is_none(), owed.since()), (true, None));
        owed.request(2, seconds(2));
        owed.sent(seconds(2));
        owed.request(1, seconds(3));
        owed.sent(seconds(3));
        assert_eq!((owed.is_none(), owed.since(), owed.requests()), (false, Some(seconds(2)), 3));
        assert!(owed.answered() && owed.answered() && !owed.is_none());
        assert!(owed.answered() && owed.is_none());
        assert!(!owed.answered(), "none was owed");
        assert_eq!(owed.answers(), 4);
    }

    #[test]
    fn what_is_not_sent_is_not_owed_by_the_server() {
        let mut owed = Owed::default();
        owed.request(1, seconds(1));
        assert_eq!((owed.is_none(), owed.since()), (false, None));
        owed.sent(seconds(20));
        assert_eq!(owed.since(), Some(seconds(20)));
        owed.request(1, seconds(21));
        assert_eq!(owed.since(), Some(seconds(20)), "the first is sent");
        owed.answered();
        assert_eq!(owed.since(), None);
        owed.sent(seconds(30));
        assert_eq!(owed.since(), Some(seconds(30)));
    }

    #[test]
    fn an_answer_tells_that_the_server_was_there_when_its_request_was_sent() {
        let mut owed = Owed::default();
        owed.request(2, seconds(1));
        owed.request(1, seconds(2));
        owed.answered();
        assert_eq!(owed.answered_at(), seconds(0), "one of two");
        owed.answered();
        assert_eq!(owed.answered_at(), seconds(1));
        owed.request(0, seconds(4));
        owed.answered();
        assert_eq!(owed.answered_at(), seconds(1), "one at a time is followed");
        owed.request(1, seconds(5));
        owed.ask(seconds(6));
        owed.answered();
        assert_eq!(owed.answered_at(), seconds(1));
        owed.answered();
        assert_eq!(owed.answered_at(), seconds(6), "what was asked for this tells most");
    }
}
