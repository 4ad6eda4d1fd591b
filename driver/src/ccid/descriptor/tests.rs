//! Class descriptors of real readers, and impossible descriptors.

use super::{ClassDescriptor, DescriptorError, ExchangeLevel, LENGTH, fuzz};

/// Returns the name, the bytes and the expected text of each reader.
fn field() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let lines: Vec<&str> = include_str!("../../../tests/data/descriptors.txt")
        .lines()
        .skip(1)
        .collect();
    let readers: Vec<_> = lines
        .chunks(3)
        .map(|reader| (reader[0], bytes(reader[1]), reader[2]))
        .collect();
    assert!(readers.len() >= 12, "{} readers", readers.len());
    readers
}

fn bytes(digits: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Returns a YubiKey's descriptor with some of its bytes replaced.
fn changed(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let (_, mut yubikey, _) = field().swap_remove(0);
    for (at, with) in changes {
        yubikey[*at..*at + with.len()].copy_from_slice(with);
    }
    yubikey
}

#[test]
fn descriptors_of_real_readers_are_understood() {
    for (name, bytes, understood) in field() {
        let class = ClassDescriptor::parse(&bytes).unwrap();
        assert_eq!(class.to_string(), understood, "{name}");
        assert_eq!(class.corrections(), [""; 0], "{name}");
    }
}

#[test]
fn real_descriptors_cover_every_exchange_level() {
    let levels: Vec<_> = field()
        .iter()
        .map(|(_, bytes, _)| ClassDescriptor::parse(bytes).unwrap().exchange_level())
        .collect();
    for level in [
        ExchangeLevel::Character,
        ExchangeLevel::Tpdu,
        ExchangeLevel::ShortApdu,
        ExchangeLevel::ExtendedApdu,
    ] {
        assert!(levels.contains(&level), "{level:?}");
    }
}

#[test]
fn bytes_after_the_descriptor_are_ignored() {
    let mut longer = changed(&[(0, &[60])]);
    longer.extend([0xFF; 6]);
    let usual = ClassDescriptor::parse(&changed(&[])).unwrap();
    assert_eq!(ClassDescriptor::parse(&longer), Ok(usual));
}

#[test]
fn a_descriptor_cut_short_or_of_another_type_is_refused() {
    let whole = changed(&[]);
    for len in 0..LENGTH {
        let cut = ClassDescriptor::parse(&whole[..len]);
        assert_eq!(cut, Err(DescriptorError::Length(len)));
    }
    let small = ClassDescriptor::parse(&changed(&[(0, &[53])]));
    assert_eq!(small, Err(DescriptorError::Length(53)));
    let endpoint = ClassDescriptor::parse(&changed(&[(1, &[0x05])]));
    assert_eq!(endpoint, Err(DescriptorError::Type(0x05)));
}

#[test]
fn impossible_descriptor_values_are_corrected_and_reported() {
    let max = &[0xFF; 4][..];
    for (changes, what, correction) in [
        (
            vec![(44, &[0, 0, 0, 0][..])],
            "messages of 271 bytes",
            "messages too short",
        ),
        (
            vec![(44, &[10, 0, 0, 0])],
            "messages of 271 bytes",
            "messages too short",
        ),
        (
            vec![(44, max)],
            "messages of 65554 bytes",
            "longer than any APDU",
        ),
        (vec![(53, &[0])], "1 of 1 slots", "no slot may be busy"),
        (
            vec![(6, &[0, 0, 0, 0])],
            "T=0 and T=1",
            "neither T=0 nor T=1",
        ),
        (
            vec![(40, &[0, 0, 7, 0])],
            "extended APDU",
            "several exchange levels",
        ),
        (
            vec![(40, &[0, 0, 3, 0])],
            "short APDU",
            "several exchange levels",
        ),
        (
            vec![(40, &[0, 0, 1, 0]), (28, max)],
            "IFSD 254",
            "an IFSD above 254",
        ),
    ] {
        let class = ClassDescriptor::parse(&changed(&changes)).unwrap();
        assert!(class.to_string().contains(what), "{class}");
        assert!(
            class
                .corrections()
                .iter()
                .any(|said| said.contains(correction)),
            "{class}"
        );
    }
}

#[test]
fn max_message_length_of_11_is_accepted() {
    let class = ClassDescriptor::parse(&changed(&[(44, &[11, 0, 0, 0])])).unwrap();
    assert_eq!(class.max_message_length(), 11);
}

#[test]
fn busy_slots_are_limited_to_the_existing_slots() {
    let class = ClassDescriptor::parse(&changed(&[(4, &[1]), (53, &[9])])).unwrap();
    assert_eq!((class.slots(), class.busy_slots()), (2, 2));
    let class = ClassDescriptor::parse(&changed(&[(4, &[255]), (53, &[255])])).unwrap();
    assert_eq!(class.slots(), 255);
}

#[test]
fn truncated_and_flipped_descriptors_end_without_a_panic() {
    let mut tried = 0;
    for (_, whole, _) in field() {
        for len in 0..=whole.len() {
            fuzz(&whole[..len]);
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fuzz(&flipped);
            tried += 1;
        }
    }
    assert!(tried > 5_000, "{tried} were tried");
}
