//! The conf of a container: document, device pairs, store.
