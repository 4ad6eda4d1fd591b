//! The configured visibility: which readers, applets and tokens have slots, and the names of objects.

use std::sync::Arc;

use claviger_token::{AppletKind, Card, Naming, Token, TokenError};

/// A list of allowed names and a list of denied names. The denied names have precedence.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    /// Without a list, every name is allowed.
    pub(crate) allow: Option<Vec<String>>,
    pub(crate) deny: Vec<String>,
}

impl Filter {
    fn allows(&self, is_named: impl Fn(&String) -> bool) -> bool {
        let named = |names: &[String]| names.iter().any(&is_named);
        self.allow.as_deref().is_none_or(named) && !named(&self.deny)
    }
}

/// The visible readers, applets and tokens, and the names of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visibility {
    /// The applets that have slots, in the order of the slots.
    pub(crate) applets: Vec<AppletKind>,
    /// The readers, by parts of their names.
    pub(crate) readers: Filter,
    /// The tokens, by their serial numbers.
    pub(crate) tokens: Filter,
    /// The labels and IDs of objects.
    pub(crate) naming: Arc<Naming>,
}

impl Default for Visibility {
    fn default() -> Self {
        Self {
            applets: AppletKind::ALL.to_vec(),
            readers: Filter::default(),
            tokens: Filter::default(),
            naming: Arc::default(),
        }
    }
}

/// The tokens found on a card.
pub(crate) struct DiscoveredTokens {
    /// The visible tokens.
    pub(crate) tokens: Vec<Token>,
    /// The card has no supported applet, visible or hidden.
    pub(crate) foreign: bool,
}

impl Visibility {
    /// Returns whether the reader called `name` has slots.
    pub(crate) fn shows_reader(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.readers
            .allows(|part| name.contains(&part.to_ascii_lowercase()))
    }

    /// Returns whether the token with this serial number is visible.
    pub(crate) fn shows_token(&self, serial: &str) -> bool {
        self.tokens
            .allows(|other| other.eq_ignore_ascii_case(serial))
    }

    /// Finds the visible tokens of a card.
    ///
    /// # Errors
    /// The errors of [`Token::discover_as`].
    pub(crate) fn discover(&self, card: &mut Card) -> Result<DiscoveredTokens, TokenError> {
        let mut tokens = Token::discover_as(card, &self.applets, &self.naming)?;
        let foreign = tokens.is_empty() && self.applets == AppletKind::ALL;
        tokens.retain(|token| {
            let serial = token.info().serial;
            let shown = self.shows_token(&serial);
            if !shown {
                tracing::debug!(
                    "{} {serial} is hidden by the configuration",
                    token.kind().name()
                );
            }
            shown
        });
        Ok(DiscoveredTokens { tokens, foreign })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(allow: Option<&[&str]>, deny: &[&str]) -> Filter {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Filter {
            allow: allow.map(owned),
            deny: owned(deny),
        }
    }

    #[test]
    fn everything_is_visible_by_default() {
        let visibility = Visibility::default();
        assert!(visibility.shows_reader("Any Reader 00 00") && visibility.shows_token("00000000"));
    }

    #[test]
    fn allow_list_hides_all_other_tokens_and_an_empty_one_hides_all() {
        let allowing = |names: &[&str]| Visibility {
            tokens: filter(Some(names), &[]),
            ..Visibility::default()
        };
        assert!(allowing(&["2D70", "000f00000001"]).shows_token("000F00000001"));
        assert!(!allowing(&["2d70"]).shows_token("2d7069"), "only whole");
        assert!(!allowing(&[]).shows_token("2d70"));
    }

    #[test]
    fn denied_reader_is_hidden_even_if_allowed() {
        let visibility = Visibility {
            readers: filter(Some(&["yubico"]), &["fido"]),
            ..Visibility::default()
        };
        assert!(
            visibility.shows_reader("Yubico YubiKey CCID 00 00"),
            "by a part of the name"
        );
        assert!(!visibility.shows_reader("Yubico YubiKey FIDO+CCID 00 00"));
        assert!(!visibility.shows_reader("Gemalto PC Twin Reader"));
    }
}
