//! What the repository says of itself: promises with a test, corpora, rooms, pages.

mod dependencies;
mod fuzz_corpus;
mod pages;
mod rooms;
mod security;
