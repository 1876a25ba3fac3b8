//! What every intent of a request inherits.

tokio::task_local! {
    static CURRENT: Scoped;
}

/// A context in its scope.
struct Scoped {
    context: Context,
    /// The trace context of the span that the scope was entered in: a span that lies within the scope has another one.
    #[cfg(feature = "opentelemetry")]
    around: Option<(String, Option<String>)>,
}

/// What ties messages to the request, or to the message, that they come from.
///
/// Set once, where a request or a message comes in; every [`Intent`](crate::Intent) that is emitted inside inherits what it
/// does not set itself. It holds for the future that is passed to [`scope`](Context::scope) and not for tasks that it spawns.
///
/// ```
/// # async fn checkout() {}
/// # async fn serve(request_id: String) {
/// use outbox_client::Context;
///
/// Context::correlated(request_id).scope(checkout()).await;
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// What ties together everything that belongs to one business transaction.
    pub correlation_id: Option<String>,
    /// The message or request that this follows from.
    pub causation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// W3C trace context.
    pub tracestate: Option<String>,
}

impl Context {
    /// With this correlation id and nothing else.
    #[must_use]
    pub fn correlated(correlation_id: impl Into<String>) -> Self {
        Self { correlation_id: Some(correlation_id.into()), ..Self::default() }
    }

    /// Runs a future within this context, instead of the one around it.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        let scoped = Scoped {
            context: self,
            #[cfg(feature = "opentelemetry")]
            around: crate::spans::trace_context(),
        };
        CURRENT.scope(scoped, future).await
    }

    /// The context that this code runs in; an empty one if none was set.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.try_with(|scoped| scoped.context.clone()).unwrap_or_default()
    }

    /// This one where it says something, else the current one, field by field. With the feature `tracing` the current span's
    /// correlation id comes after both; with `opentelemetry` the trace context of a span that lies within the current one's scope
    /// comes before the current one's, and that of the span around it after.
    pub(crate) fn or_current(&self) -> Self {
        let own = self.clone();
        let current = Self::current();
        #[cfg(feature = "opentelemetry")]
        let current = current.traced(&own);
        #[cfg(feature = "tracing")]
        let current = current.correlated_by_spans(&own);
        Self {
            correlation_id: own.correlation_id.or(current.correlation_id),
            causation_id: own.causation_id.or(current.causation_id),
            traceparent: own.traceparent.or(current.traceparent),
            tracestate: own.tracestate.or(current.tracestate),
        }
    }

    #[cfg(feature = "opentelemetry")]
    fn traced(mut self, own: &Self) -> Self {
        if own.traceparent.is_some() || own.tracestate.is_some() {
            return self;
        }
        let of_span = crate::spans::trace_context();
        let within = CURRENT.try_with(|scoped| scoped.around != of_span).unwrap_or(true);
        if let Some((traceparent, tracestate)) = of_span.filter(|_| within || self.traceparent.is_none()) {
            (self.traceparent, self.tracestate) = (Some(traceparent), tracestate);
        }
        self
    }

    #[cfg(feature = "tracing")]
    fn correlated_by_spans(mut self, own: &Self) -> Self {
        if own.correlation_id.is_none() && self.correlation_id.is_none() {
            self.correlation_id = crate::spans::correlation_id();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_context_holds_inside_its_scope_and_an_inner_one_takes_its_place() {
        assert_eq!(Context::current(), Context::default());
        let outer = Context::correlated("outer");
        outer
            .clone()
            .scope(async {
                assert_eq!(Context::current(), outer);
                let inner = Context { causation_id: Some("m1".into()), ..Context::default() };
                inner.clone().scope(async { assert_eq!(Context::current(), inner) }).await;
                assert_eq!(Context::current(), outer);
            })
            .await;
        assert_eq!(Context::current(), Context::default());
    }

    #[tokio::test]
    async fn what_is_passed_in_wins_over_the_context_field_by_field() {
        let around = Context { causation_id: Some("m1".into()), ..Context::correlated("around") };
        let own = Context::correlated("own");
        let merged = around.scope(async { own.or_current() }).await;
        assert_eq!(merged, Context { causation_id: Some("m1".into()), ..Context::correlated("own") });
    }
}
