//! Reads class descriptors in hexadecimal, one a line, and prints how the driver interprets each.
//!
//! Exits with 1 if one of them is not valid.

use std::{io::BufRead, process::ExitCode};

use claviger_driver::ccid::descriptor::ClassDescriptor;

fn main() -> ExitCode {
    let mut good = true;
    for line in std::io::stdin().lock().lines() {
        let result = line
            .map_err(|error| error.to_string())
            .and_then(|line| interpret(&line));
        match result {
            Ok(text) => println!("{text}"),
            Err(text) => {
                println!("error: {text}");
                good = false;
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn interpret(line: &str) -> Result<String, String> {
    let bytes = bytes(line.trim()).ok_or("no hexadecimal digits, or an odd number of them")?;
    let class = ClassDescriptor::parse(&bytes).map_err(|error| error.to_string())?;
    Ok(class.to_string())
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let nibble = |digit: &u8| {
        char::from(*digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(nibble(high)? << 4 | nibble(low)?),
            _ => None,
        })
        .collect()
}
