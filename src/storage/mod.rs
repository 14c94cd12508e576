//! Layer 1: everything that touches files.
