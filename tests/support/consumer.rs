//! A worker that takes jobs as fast as they come, beside the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::{Gearmand, Worker, pause};

/// Takes and completes all jobs of a queue until it is told to finish.
pub struct Consumer {
    thread: JoinHandle<Vec<Vec<u8>>>,
    count: Arc<AtomicUsize>,
    finish: Arc<AtomicBool>,
}

impl Consumer {
    pub fn start(server: &Gearmand, queue: &str) -> Consumer {
        let (count, finish) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut worker = Worker::connect(server.address(), &[queue]);
        let (counting, finishing) = (Arc::clone(&count), Arc::clone(&finish));
        let thread = std::thread::spawn(move || {
            let mut received = Vec::new();
            loop {
                // Looked at first: whatever was in the queue when the test said so is still taken.
                let last = finishing.load(Ordering::SeqCst);
                while let Some(job) = worker.try_grab() {
                    worker.complete(&job, b"");
                    received.push(job.data);
                    counting.fetch_add(1, Ordering::SeqCst);
                }
                if last {
                    worker.settle();
                    return received;
                }
                pause();
            }
        });
        Consumer { thread, count, finish }
    }

    /// Jobs taken so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Takes what is left in the queue and returns the data of all jobs.
    pub fn finish(self) -> Vec<Vec<u8>> {
        self.finish.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}
