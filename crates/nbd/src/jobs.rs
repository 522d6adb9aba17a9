//! Backend calls that may block, on tokio's blocking threads: a bounded number of each connection at a time, the others in
//! a queue.

use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::mpsc;

use crate::{
    backend::{Backend, Extents, StatusExtent, ZeroMode},
    error::ErrorCode,
    protocol::{Request, command, command_flag},
};

/// The most extents of one context in one reply.
const EXTENTS_MAX: usize = 8192;

/// A request with its payload, or with the buffer for its answer.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) buffer: Vec<u8>,
    /// Whether a READ may be answered by a hole.
    pub(crate) holes: bool,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) request: Request,
    pub(crate) outcome: Result<Outcome, (ErrorCode, String)>,
    /// The job's buffer, to be used again unless the outcome is `Data`.
    pub(crate) buffer: Vec<u8>,
}

/// What a job produced.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Nothing but success.
    Success,
    /// The buffer holds the data.
    Data,
    /// The range is all zeroes.
    Hole,
    /// Extents of each context.
    Status(Vec<(u32, Vec<StatusExtent>)>),
}

/// The jobs of one connection.
pub(crate) struct Jobs {
    backend: Arc<dyn Backend>,
    contexts: Arc<[String]>,
    queued: VecDeque<Job>,
    running: usize,
    running_max: usize,
    reserved_bytes: usize,
    sender: mpsc::UnboundedSender<Done>,
    receiver: mpsc::UnboundedReceiver<Done>,
}

impl Jobs {
    /// None yet.
    pub(crate) fn new(backend: Arc<dyn Backend>, contexts: Arc<[String]>, running_max: usize) -> Self {
        // Bounded by the requests in flight.
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            backend,
            contexts,
            queued: VecDeque::new(),
            running: 0,
            running_max: running_max.max(1),
            reserved_bytes: 0,
            sender,
            receiver,
        }
    }

    /// Jobs not yet taken by `poll_done`.
    pub(crate) fn in_flight(&self) -> usize {
        self.running + self.queued.len()
    }

    /// An upper bound for the memory of those jobs.
    pub(crate) fn reserved_bytes(&self) -> usize {
        self.reserved_bytes
    }

    fn cost_bytes(&self, request: &Request) -> usize {
        match request.command {
            command::READ | command::WRITE => request.length as usize,
            command::BLOCK_STATUS => EXTENTS_MAX * 32 * self.contexts.len(),
            _ => 256,
        }
    }

    /// Starts a job, or queues it.
    pub(crate) fn start(&mut self, job: Job) {
        self.reserved_bytes += self.cost_bytes(&job.request);
        self.queued.push_back(job);
        self.spawn();
    }

    fn spawn(&mut self) {
        while self.running < self.running_max {
            let Some(job) = self.queued.pop_front() else { return };
            self.running += 1;
            let ticket = Ticket { request: job.request, sender: Some(self.sender.clone()) };
            let (backend, contexts) = (Arc::clone(&self.backend), Arc::clone(&self.contexts));
            tokio::task::spawn_blocking(move || ticket.finish(run(&*backend, &contexts, job)));
        }
    }

    /// The next job that is done.
    pub(crate) fn poll_done(&mut self, context: &mut Context<'_>) -> Poll<Done> {
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(done)) => {
                self.running -= 1;
                self.reserved_bytes -= self.cost_bytes(&done.request);
                self.spawn();
                Poll::Ready(done)
            }
            // `self` holds a sender, so the channel does not end.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Sees to it that each job is answered once, even if the backend panics or the runtime drops the job.
struct Ticket {
    request: Request,
    sender: Option<mpsc::UnboundedSender<Done>>,
}

impl Ticket {
    fn finish(mut self, done: Done) {
        if let Some(sender) = self.sender.take() {
            // The connection may be gone; then nobody wants to know.
            let _ = sender.send(done);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let outcome = Err((ErrorCode::Io, "the backend failed".to_owned()));
            let _ = sender.send(Done { request: self.request, outcome, buffer: Vec::new() });
        }
    }
}

fn run(backend: &dyn Backend, contexts: &[String], job: Job) -> Done {
    let Job { request, mut buffer, holes } = job;
    let outcome = call(backend, contexts, &request, &mut buffer, holes);
    let outcome = outcome.map_err(|error| (ErrorCode::from(&error), error.to_string()));
    Done { request, outcome, buffer }
}

fn call(
    backend: &dyn Backend,
    contexts: &[String],
    request: &Request,
    buffer: &mut [u8],
    holes: bool,
) -> io::Result<Outcome> {
    let (offset, length) = (request.offset, u64::from(request.length));
    let has = |flag: u16| request.flags & flag != 0;
    let fua = has(command_flag::FUA);
    match request.command {
        command::READ => {
            if holes && backend.is_zero(offset, length) {
                return Ok(Outcome::Hole);
            }
            backend.read(offset, buffer)?;
            return Ok(Outcome::Data);
        }
        command::WRITE => backend.write(offset, buffer, fua)?,
        command::FLUSH => backend.flush()?,
        command::TRIM => backend.trim(offset, length, fua)?,
        command::WRITE_ZEROES => {
            let may_trim = !has(command_flag::NO_HOLE);
            let mode = ZeroMode { may_trim, fua, fast: has(command_flag::FAST_ZERO) };
            backend.write_zeroes(offset, length, mode)?;
        }
        _ => {
            let count_max = if has(command_flag::REQ_ONE) { 1 } else { EXTENTS_MAX };
            let mut status = Vec::with_capacity(contexts.len());
            for (id, context) in contexts.iter().enumerate() {
                let mut extents = Extents::new(length, count_max);
                backend.block_status(context, offset, length, &mut extents)?;
                status.push((id as u32, extents.into_list()));
            }
            return Ok(Outcome::Status(status));
        }
    }
    Ok(Outcome::Success)
}
