//! Plans the steps between a card's answer to reset and its first command. The steps depend on the functions that the reader
//! performs automatically (dwFeatures).
//!
//! | the reader | PPS | SetParameters |
//! |---|---|---|
//! | negotiates | by the reader | by the reader |
//! | takes APDUs, sets parameters | by the reader | by the reader |
//! | takes APDUs | by the reader, after SetParameters, or none | by the driver |
//! | sends PPS by the parameters it is given | by the reader | by the driver |
//! | anything else | by the driver | by the driver |

use super::capabilities::Capabilities;
use crate::protocol::{
    Protocol, Rate, TransmissionParameters,
    pps::{self, AgreedParameters, PpsPlan, PpsRequest},
};

/// The steps of a negotiation after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NegotiationPlan {
    /// The protocol and rate after the negotiation, as far as they are known.
    pub(super) agreement: AgreedParameters,
    /// The PPS request to send first.
    pub(super) pps: Option<PpsRequest>,
    /// What to do about the reader's parameters.
    pub(super) parameters: ParameterStep,
}

/// What to do about the reader's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParameterStep {
    /// Leave them.
    Keep,
    /// Set what was agreed (SetParameters).
    Set,
    /// Query which protocol the reader chose (GetParameters).
    Query,
}

/// Card and reader have no protocol in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reader does not support T={}, the protocol of the card", .0.number())]
pub(super) struct NoCommonProtocol(Protocol);

/// Makes the plan for a card that announced `parameters`. A `careful` plan requests nothing unnecessary: the card keeps its
/// protocol and rate after reset, if the reader supports them.
pub(super) fn plan(
    reader: &Capabilities,
    parameters: &TransmissionParameters,
    careful: bool,
) -> Result<NegotiationPlan, NoCommonProtocol> {
    let device = common_protocols(reader, parameters);
    if reader.takes_apdus() {
        return Ok(for_apdus(reader, parameters, &device, careful));
    }
    let after_reset = after_reset(parameters);
    let none = NoCommonProtocol(after_reset.protocol);
    let best = *device.first().ok_or(none)?;
    if reader.class.negotiates_parameters() {
        return Ok(negotiated(best, after_reset, device.len() > 1));
    }
    let stays = careful && device.contains(&after_reset.protocol);
    let protocol = if stays { after_reset.protocol } else { best };
    let (agreement, pps) = wanted(reader, parameters, protocol, careful).ok_or(none)?;
    // The parameters that a reader has set from the answer to reset are correct if there was no choice.
    let is_set = reader.class.sets_parameters()
        && agreement == after_reset
        && (parameters.specific_mode.is_some() || parameters.rate == Rate::DEFAULT);
    Ok(NegotiationPlan {
        agreement,
        pps: pps.filter(|_| !reader.class.sends_pps()),
        parameters: if is_set {
            ParameterStep::Keep
        } else {
            ParameterStep::Set
        },
    })
}

/// Returns the protocol and rate of the card after a reset.
fn after_reset(parameters: &TransmissionParameters) -> AgreedParameters {
    AgreedParameters {
        protocol: parameters.default_protocol(),
        rate: parameters.initial_rate(),
    }
}

/// The reader negotiates; with which result is plain unless there are `several`.
const fn negotiated(
    protocol: Protocol,
    after_reset: AgreedParameters,
    several: bool,
) -> NegotiationPlan {
    NegotiationPlan {
        agreement: AgreedParameters {
            protocol,
            ..after_reset
        },
        pps: None,
        parameters: if several {
            ParameterStep::Query
        } else {
            ParameterStep::Keep
        },
    }
}

/// The protocols that reader and card share, T=1 before T=0.
pub(super) fn common_protocols(
    reader: &Capabilities,
    parameters: &TransmissionParameters,
) -> Vec<Protocol> {
    let speaks = |protocol: &Protocol| match parameters.specific_mode {
        Some(_) => parameters.default_protocol() == *protocol,
        None => parameters.offered.contains(protocol),
    };
    [Protocol::T1, Protocol::T0]
        .into_iter()
        .filter(|protocol| speaks(protocol) && reader.supports_protocol(*protocol))
        .collect()
}

/// Returns `protocol` at the best rate, and the PPS request that it needs.
fn wanted(
    reader: &Capabilities,
    parameters: &TransmissionParameters,
    protocol: Protocol,
    careful: bool,
) -> Option<(AgreedParameters, Option<PpsRequest>)> {
    let reach = if careful {
        reader.default_reach()
    } else {
        reader.reach()
    };
    match pps::plan(parameters, protocol, &reach) {
        PpsPlan::AlreadyActive(agreement) => Some((agreement, None)),
        PpsPlan::Negotiate(proposal) => Some((proposal.agreement(), Some(proposal))),
        PpsPlan::Unsupported => None,
    }
}

/// Readers at the APDU level negotiate with the card themselves. Some need SetParameters first.
fn for_apdus(
    reader: &Capabilities,
    parameters: &TransmissionParameters,
    device: &[Protocol],
    careful: bool,
) -> NegotiationPlan {
    let after_reset = after_reset(parameters);
    let best = device.first().copied();
    let set_by_itself = reader.class.negotiates_parameters() || reader.class.sets_parameters();
    if set_by_itself || !device.contains(&after_reset.protocol) {
        return negotiated(best.unwrap_or(after_reset.protocol), after_reset, false);
    }
    let chosen = best
        .filter(|_| reader.class.sends_pps() && !careful)
        .and_then(|best| wanted(reader, parameters, best, false));
    NegotiationPlan {
        agreement: chosen.map_or(after_reset, |(agreement, _)| agreement),
        pps: None,
        parameters: ParameterStep::Set,
    }
}
