//! A virtual disk that records, errs and loses power, served over NBD.
