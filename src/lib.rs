//! Library of the phoenix-nvidia program.
