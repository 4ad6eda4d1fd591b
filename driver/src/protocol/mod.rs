//! Transmission protocols between reader and card (ISO 7816-3): what an answer to reset announces, how it is
//! negotiated, T=0 and T=1. Values only: blocks go in and out, nothing is sent and no clock is read here.
