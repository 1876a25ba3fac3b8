//! What the application's tracing spans say of an intent, and the span in which a message is handled.
//!
//! A correlation id is looked for in the spans around an emit, because it is a field that applications log anyway. Only the registry
//! of `tracing-subscriber` keeps what a layer remembers of a span; without it, or without [`CorrelationLayer`], nothing is found and
//! nothing else changes.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Span, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::delivery::Delivery;

/// The field of a span that is looked for.
const FIELD: &str = "correlation_id";

/// Remembers the field `correlation_id` of spans, so that what is emitted inside them has it.
///
/// ```
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// let subscriber = tracing_subscriber::registry().with(outbox_client::CorrelationLayer);
/// tracing::subscriber::with_default(subscriber, || {
///     let request = tracing::info_span!("checkout", correlation_id = "req-8f2e");
///     // Every intent that is emitted inside `request` is correlated with req-8f2e.
/// });
/// ```
///
/// The innermost span that has the field counts. What the intent or the [`Context`](crate::Context) says comes first. A field is
/// there to be logged and must fail no transaction: one that is empty, or longer than a correlation id may be, is as good as none.
#[derive(Clone, Copy, Debug, Default)]
pub struct CorrelationLayer;

/// As the outbox takes them.
const BYTES_MAX: usize = 1_000;

/// What the layer remembers of a span.
struct CorrelationId(String);

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for CorrelationLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut found = Found(None);
        attributes.record(&mut found);
        remember(found, id, &context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut found = Found(None);
        values.record(&mut found);
        remember(found, id, &context);
    }
}

fn remember<S: Subscriber + for<'span> LookupSpan<'span>>(found: Found, id: &Id, context: &Context<'_, S>) {
    if let (Found(Some(text)), Some(span)) = (found, context.span(id))
        && (1..=BYTES_MAX).contains(&text.len())
    {
        span.extensions_mut().replace(CorrelationId(text));
    }
}

struct Found(Option<String>);

impl Visit for Found {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == FIELD {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == FIELD {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

/// The correlation id of the innermost span that has one.
pub(crate) fn correlation_id() -> Option<String> {
    let found = Span::current().with_subscriber(|(id, subscriber)| {
        let span = subscriber.downcast_ref::<Registry>()?.span(id)?;
        span.scope().find_map(|span| Some(span.extensions().get::<CorrelationId>()?.0.clone()))
    });
    found.flatten()
}

/// The span in which a message is handled.
pub(crate) fn process(delivery: &Delivery) -> Span {
    let span = tracing::info_span!(
        "process",
        otel.kind = "consumer",
        message_id = %delivery.id,
        correlation_id = delivery.context.correlation_id,
    );
    #[cfg(feature = "opentelemetry")]
    otel::follow(&span, delivery);
    span
}

#[cfg(feature = "opentelemetry")]
pub(crate) use otel::trace_context;

#[cfg(feature = "opentelemetry")]
mod otel {
    use std::collections::HashMap;

    use opentelemetry::Context;
    use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
    use opentelemetry::trace::TraceContextExt as _;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    use crate::delivery::Delivery;

    /// `traceparent` and `tracestate` of the current span, in W3C's form whatever propagator the application has: that is what the
    /// headers of a record are.
    pub(crate) fn trace_context() -> Option<(String, Option<String>)> {
        let of_tracing = Span::current().context();
        // An application may use OpenTelemetry without tracing's spans.
        let context =
            if of_tracing.span().span_context().is_valid() { of_tracing } else { Context::current() };
        let mut headers = HashMap::new();
        TraceContextPropagator::new().inject_context(&context, &mut headers);
        let traceparent = headers.remove("traceparent")?;
        Some((traceparent, headers.remove("tracestate").filter(|state| !state.is_empty())))
    }

    /// Makes the span a child of the one that the intent was emitted in, linked to it too, with what the semantic conventions ask for.
    pub(super) fn follow(span: &Span, delivery: &Delivery) {
        let headers = Headers(delivery);
        let emitted = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        let emitter = emitted.span().span_context().clone();
        if emitter.is_valid() {
            // A span that nobody records has no parent to set.
            let _not_recorded = span.set_parent(emitted);
            span.add_link(emitter);
        }
        span.set_attribute("messaging.system", "kafka");
        span.set_attribute("messaging.operation.name", "process");
        span.set_attribute("messaging.operation.type", "process");
        span.set_attribute("messaging.message.id", delivery.id.to_string());
        if let Some(correlation_id) = &delivery.context.correlation_id {
            span.set_attribute("messaging.message.conversation_id", correlation_id.clone());
        }
        if let Some(place) = &delivery.place {
            span.set_attribute("messaging.destination.name", place.topic.clone());
            span.set_attribute("messaging.destination.partition.id", place.partition.to_string());
            span.set_attribute("messaging.kafka.offset", place.offset);
        }
    }

    struct Headers<'a>(&'a Delivery);

    impl Extractor for Headers<'_> {
        fn get(&self, name: &str) -> Option<&str> {
            match name {
                "traceparent" => self.0.context.traceparent.as_deref(),
                "tracestate" => self.0.context.tracestate.as_deref(),
                _ => None,
            }
        }

        fn keys(&self) -> Vec<&str> {
            vec!["traceparent", "tracestate"]
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn the_innermost_span_that_has_a_correlation_id_gives_it() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(CorrelationLayer), || {
            assert_eq!(correlation_id(), None);
            let request = tracing::info_span!("request", correlation_id = "req-1").entered();
            let inner = tracing::info_span!("query", table = "orders").entered();
            assert_eq!(correlation_id().as_deref(), Some("req-1"));
            let later = tracing::info_span!("other", correlation_id = tracing::field::Empty).entered();
            assert_eq!(correlation_id().as_deref(), Some("req-1"), "a field without a value says nothing");
            later.record("correlation_id", tracing::field::display("req-2"));
            assert_eq!(correlation_id().as_deref(), Some("req-2"));
            drop(later);
            assert_eq!(correlation_id().as_deref(), Some("req-1"));
            for useless in ["", &"x".repeat(1_001)] {
                let span = tracing::info_span!("hostile", correlation_id = useless);
                assert_eq!(span.in_scope(correlation_id).as_deref(), Some("req-1"));
            }
            drop((inner, request));
        });
    }

    #[test]
    fn without_the_layer_or_a_subscriber_there_is_none() {
        let span = tracing::info_span!("request", correlation_id = "req-1");
        assert_eq!(span.in_scope(correlation_id), None);
        tracing::subscriber::with_default(tracing_subscriber::registry(), || {
            assert_eq!(
                tracing::info_span!("request", correlation_id = "req-1").in_scope(correlation_id),
                None
            );
        });
    }

    #[cfg(feature = "opentelemetry")]
    mod with_opentelemetry {
        use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
        use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
        use tracing_opentelemetry::OpenTelemetrySpanExt as _;
        use tracing_subscriber::layer::SubscriberExt as _;

        use crate::context::Context;
        use crate::delivery::Delivery;
        use crate::spans::trace_context;

        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

        fn traced(sampler: Sampler, check: impl FnOnce()) {
            let provider = SdkTracerProvider::builder().with_sampler(sampler).build();
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("a test"));
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), check);
        }

        fn delivery(flags: &str) -> Delivery {
            let traceparent = format!("00-{TRACE}-b7ad6b7169203331-{flags}");
            let headers = [
                ("id", "0198c5a4-7a0e-7c9e-b9f1-3d6a0a6f2b11"),
                ("correlation-id", "req-1"),
                ("traceparent", traceparent.as_str()),
                ("tracestate", "vendor=1"),
            ];
            Delivery::from_headers(headers.map(|(name, value)| (name, Some(value.as_bytes())))).unwrap()
        }

        #[test]
        fn an_intent_is_emitted_in_the_current_span_whatever_the_context_around_it_was_received_with() {
            traced(Sampler::AlwaysOn, || {
                let span = tracing::info_span!("request");
                let (trace, id) = {
                    let context = span.context();
                    let current = context.span();
                    (current.span_context().trace_id(), current.span_context().span_id())
                };
                let expected = format!("00-{trace}-{id}-01");
                let merged = span.in_scope(|| Context::default().or_current());
                assert_eq!((merged.traceparent, merged.tracestate), (Some(expected), None));
                let own = Context { traceparent: Some("own".into()), ..Context::default() };
                assert_eq!(span.in_scope(|| own.or_current()), own, "what an intent says itself wins");
                assert_eq!(trace_context(), None, "there is no span out here");
            });
        }

        #[tokio::test]
        async fn a_handler_runs_in_a_span_of_the_messages_trace_and_hands_it_on() {
            let provider = SdkTracerProvider::builder().build();
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("a test"));
            let subscriber = tracing_subscriber::registry().with(layer).with(crate::CorrelationLayer);
            let _until_the_end = tracing::subscriber::set_default(subscriber);
            let delivery = delivery("01");
            let next = delivery.scope(async { Context::default().or_current() }).await;
            let traceparent = next.traceparent.unwrap();
            assert!(
                traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-01"),
                "{traceparent}"
            );
            assert!(!traceparent.contains("b7ad6b7169203331"), "a span of its own: {traceparent}");
            assert_eq!(next.tracestate.as_deref(), Some("vendor=1"));
            assert_eq!(next.correlation_id.as_deref(), Some("req-1"));
            assert_eq!(next.causation_id, Some(delivery.id.to_string()));
        }

        /// The consumer's loop has a span of its own, and a filter has disabled the span of the handler.
        #[tokio::test]
        async fn a_span_around_the_handler_is_not_handed_on_in_place_of_the_messages_trace() {
            use tracing_subscriber::Layer as _;
            let provider = SdkTracerProvider::builder().build();
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("a test"));
            let filter = tracing_subscriber::filter::filter_fn(|metadata| metadata.name() != "process");
            let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
            let _until_the_end = tracing::subscriber::set_default(subscriber);
            let delivery = delivery("01");
            let consuming = tracing::info_span!("consume");
            let handled = delivery.scope(async {
                let handler = Context::default().or_current();
                let within = tracing::info_span!("query").in_scope(|| Context::default().or_current());
                (handler, within)
            });
            let (handler, within) = tracing::Instrument::instrument(handled, consuming).await;
            assert_eq!(handler.traceparent, delivery.context.traceparent);
            assert_ne!(within.traceparent, handler.traceparent, "a span of the handler's own comes first");
        }

        #[tokio::test]
        async fn a_trace_that_is_not_sampled_stays_so() {
            let provider = SdkTracerProvider::builder().build();
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("a test"));
            let _until_the_end = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
            let next = delivery("00").scope(async { Context::default().or_current() }).await;
            let traceparent = next.traceparent.unwrap();
            assert!(
                traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-00"),
                "{traceparent}"
            );
        }

        #[test]
        fn a_span_that_is_not_sampled_says_so_to_whoever_comes_after() {
            traced(Sampler::AlwaysOff, || {
                let (traceparent, _) = tracing::info_span!("request").in_scope(trace_context).unwrap();
                assert!(traceparent.ends_with("-00"), "{traceparent}");
            });
        }
    }
}
