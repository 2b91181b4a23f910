//! Services that behave as a test tells them to.

pub mod control;
pub mod foreign;
pub mod index;
pub mod peer;

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Response, Status};

/// The answer to a call.
type Answer<T> = Result<Response<T>, Status>;

/// The stream of an answer.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
