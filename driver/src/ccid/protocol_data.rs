//! The protocol data structures of SetParameters, which describe the card to the reader (CCID 1.1, 6.1.7).
//!
//! ```text
//! T=0 | FI DI | convention | guard time | WI      | clock stop |
//! T=1 | FI DI | 10, convention, EDC | guard time | BWI CWI | clock stop | IFSC | NAD |
//! ```

use crate::protocol::{
    Protocol, Rate, TransmissionParameters, parameters::ErrorDetection, pps::AgreedParameters,
};

/// Returns abProtocolDataStructure for a card that announced `parameters` and uses `agreement`. Any protocol but T=0
/// is encoded as T=1; the driver sets no other.
#[must_use]
pub fn encode(parameters: &TransmissionParameters, agreement: AgreedParameters) -> Vec<u8> {
    let rate = agreement.rate.ta1();
    let convention = u8::from(parameters.inverse) << 1;
    let (guard_time, clock_stop) = (parameters.extra_guard_time, parameters.clock_stop as u8);
    if agreement.protocol == Protocol::T0 {
        let waiting = parameters.waiting_integer;
        return vec![rate, convention, guard_time, waiting, clock_stop];
    }
    let waiting =
        parameters.block_waiting_integer << 4 | parameters.character_waiting_integer & 0x0F;
    let detection = u8::from(parameters.error_detection == ErrorDetection::Crc);
    vec![
        rate,
        0x10 | convention | detection,
        guard_time,
        waiting,
        clock_stop,
        parameters.ifsc,
        0,
    ]
}

/// Returns the parameters that the reader reports: bProtocolNum and the structure. A reserved rate counts as the
/// default rate.
#[must_use]
pub fn in_force(number: u8, structure: &[u8]) -> Option<AgreedParameters> {
    let protocol = match number {
        0 => Protocol::T0,
        1 => Protocol::T1,
        _ => return None,
    };
    let rate = structure.first().copied().and_then(Rate::of);
    Some(AgreedParameters {
        protocol,
        rate: rate.unwrap_or(Rate::DEFAULT),
    })
}

/// Parses arbitrary bytes as reported parameters, the first as bProtocolNum, for the fuzz target
/// `ccid_protocol_data`.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some((number, structure)) = bytes.split_first() else {
        return;
    };
    let reported = in_force(*number, structure);
    assert_eq!(reported.is_some(), *number < 2, "T=0 and T=1 only");
    let Some(agreement) = reported else { return };
    let rate = agreement.rate.ta1();
    assert_eq!(
        Rate::of(rate),
        Some(agreement.rate),
        "never a reserved rate"
    );
    let encoded = encode(&TransmissionParameters::default(), agreement);
    assert_eq!(in_force(*number, &encoded), Some(agreement));
    assert_eq!(encoded.len(), if *number == 0 { 5 } else { 7 });
}

#[cfg(test)]
mod tests {
    use claviger_apdu::Atr;

    use super::*;

    fn of(atr: &[u8], protocol: Protocol, ta1: u8) -> Vec<u8> {
        let parameters = TransmissionParameters::of(&Atr::parse(atr).unwrap());
        let rate = Rate::of(ta1).unwrap();
        encode(&parameters, AgreedParameters { protocol, rate })
    }

    #[test]
    fn a_card_of_t0_has_five_bytes() {
        // TA1 96, TC1 2, TC2 (WI) 20, clock stop low.
        let atr = [0x3B, 0xD0, 0x96, 0x02, 0xC0, 0x14, 0x1F, 0x47];
        assert_eq!(of(&atr, Protocol::T0, 0x96), [0x96, 0x00, 0x02, 0x14, 0x01]);
        assert_eq!(
            of(&[0x3F, 0x00], Protocol::T0, 0x11),
            [0x11, 0x02, 0, 10, 0]
        );
    }

    #[test]
    fn a_card_of_t1_has_seven_bytes() {
        // IFSC 254, BWI 4, CWI 5, CRC.
        let atr = [0x3B, 0x80, 0x81, 0x71, 0xFE, 0x45, 0x01, 0xCA];
        assert_eq!(
            of(&atr, Protocol::T1, 0x18),
            [0x18, 0x11, 0x00, 0x45, 0x00, 0xFE, 0x00]
        );
        let silent = of(&[0x3F, 0x80, 0x01, 0x81], Protocol::T1, 0x11);
        assert_eq!(silent, [0x11, 0x12, 0x00, 0x4D, 0x00, 0x20, 0x00]);
    }

    #[test]
    fn parameters_in_force_give_protocol_and_rate() {
        let agreement = |protocol, ta1| {
            Some(AgreedParameters {
                protocol,
                rate: Rate::of(ta1).unwrap(),
            })
        };
        assert_eq!(in_force(1, &[0x18, 0x10]), agreement(Protocol::T1, 0x18));
        assert_eq!(in_force(0, &[0x77]), agreement(Protocol::T0, 0x11));
        assert_eq!(in_force(0, &[]), agreement(Protocol::T0, 0x11));
        assert_eq!(in_force(0x80, &[0x11]), None);
    }
}
