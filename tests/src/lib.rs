//! The suites that run the scenarios live in `suites/`; this library is empty.
