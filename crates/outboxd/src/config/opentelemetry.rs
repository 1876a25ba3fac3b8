//! Whether spans are exported: what the standard variables say. The OpenTelemetry SDK reads the rest of them itself.
//!
//! A pod's `OTEL_*` variables are often set for all of its containers by somebody who does not know of the relay. So nothing here
//! keeps it from starting: what cannot be honoured turns the export off, with a warning that names the variable.

use std::ffi::OsString;

/// Spans that may wait to be exported, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise: two for each message of a few pages.
const QUEUE_SPANS: usize = 8_192;

/// Whatever is asked for: the SDK sets the whole queue aside at once.
const QUEUE_SPANS_MAX: usize = 65_536;

/// Whether and how spans are exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Export {
    /// Nobody asked for it.
    Off,
    /// Somebody asked for what the relay cannot do.
    Refused(String),
    /// As asked.
    On(Exporting),
}

/// What the relay itself needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exporting {
    /// Spans that may wait; further ones are dropped.
    pub(crate) queue_spans: usize,
    /// Whether somebody named the service.
    pub(crate) is_named: bool,
}

impl Export {
    /// Reads the variables.
    pub(crate) fn of(environment: &[(OsString, OsString)]) -> Self {
        let get = |name: &str| {
            let (_, value) = environment.iter().rev().find(|(its, _)| its == name)?;
            value.to_str().map(str::trim).filter(|value| !value.is_empty())
        };
        // The one for traces wins over the one for everything.
        let either = |what: &str| {
            [format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), format!("OTEL_EXPORTER_OTLP_{what}")]
                .into_iter()
                .find_map(|name| Some((get(&name)?, name)))
        };
        let is_disabled = get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let exporter = get("OTEL_TRACES_EXPORTER").unwrap_or("otlp");
        if is_disabled || exporter == "none" || either("ENDPOINT").is_none() {
            return Self::Off;
        }
        if exporter != "otlp" {
            return Self::Refused(format!(
                "OTEL_TRACES_EXPORTER={exporter}: the relay exports to otlp alone"
            ));
        }
        if let Some((protocol, name)) = either("PROTOCOL")
            && protocol != "http/protobuf"
        {
            return Self::Refused(format!(
                "{name}={protocol}: the relay speaks http/protobuf, for which collectors usually listen on port 4318"
            ));
        }
        let names_service = |attribute: &str| attribute.trim().starts_with("service.name=");
        Self::On(Exporting {
            queue_spans: get("OTEL_BSP_MAX_QUEUE_SIZE")
                .and_then(|number| number.parse().ok())
                .filter(|number| *number > 0)
                .map_or(QUEUE_SPANS, |number| QUEUE_SPANS_MAX.min(number)),
            is_named: get("OTEL_SERVICE_NAME").is_some()
                || get("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|all| all.split(',').any(names_service)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Export {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Export::of(&variables)
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn an_endpoint_turns_the_export_on_and_nothing_else_does() {
        let on = Export::On(Exporting { queue_spans: QUEUE_SPANS, is_named: false });
        assert_eq!(of(&[]), Export::Off);
        assert_eq!(of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Export::Off);
        assert_eq!(
            of(&[("OTEL_SERVICE_NAME", "shop-relay"), ("OTEL_TRACES_SAMPLER", "always_on")]),
            Export::Off
        );
        assert_eq!(of(&[ENDPOINT]), on);
        assert_eq!(of(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")]), on);
        assert_eq!(of(&[ENDPOINT, ("OTEL_SDK_DISABLED", "True")]), Export::Off);
        assert_eq!(of(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Export::Off);
    }

    #[test]
    fn what_cannot_be_honoured_is_named_and_keeps_nothing_from_starting() {
        let Export::Refused(why) = of(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]) else {
            panic!("grpc is not spoken")
        };
        assert!(why.starts_with("OTEL_EXPORTER_OTLP_PROTOCOL=grpc: ") && why.contains("4318"), "{why}");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        let over_grpc = of(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), traces]);
        assert!(matches!(over_grpc, Export::On(_)), "the variable for traces wins");
        let Export::Refused(why) = of(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "zipkin")]) else {
            panic!("there is no such exporter")
        };
        assert!(why.contains("zipkin"));
    }

    #[test]
    fn the_queue_is_bounded_whatever_is_asked_for() {
        let queue = |value| match of(&[ENDPOINT, ("OTEL_BSP_MAX_QUEUE_SIZE", value)]) {
            Export::On(exporting) => exporting.queue_spans,
            other => panic!("{other:?}"),
        };
        assert_eq!((queue("100"), queue("0"), queue("many")), (100, QUEUE_SPANS, QUEUE_SPANS));
        assert_eq!(queue("1000000000"), QUEUE_SPANS_MAX);
    }

    #[test]
    fn a_service_that_somebody_named_keeps_its_name() {
        let is_named = |variable| match of(&[ENDPOINT, variable]) {
            Export::On(exporting) => exporting.is_named,
            other => panic!("{other:?}"),
        };
        assert!(is_named(("OTEL_SERVICE_NAME", "shop-relay")));
        assert!(is_named(("OTEL_RESOURCE_ATTRIBUTES", "team=a, service.name=shop-relay")));
        assert!(!is_named(("OTEL_RESOURCE_ATTRIBUTES", "service.namespace=shop")));
    }
}
