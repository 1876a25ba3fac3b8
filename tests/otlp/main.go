// An OTLP receiver for the tests: the OpenTelemetry Collector's own, writing what it received to a file.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
)

func main() {
	if len(os.Args) != 3 && len(os.Args) != 5 {
		fail("usage: otlp ADDRESS FILE [CERTIFICATE KEY]")
	}
	http := map[string]any{"endpoint": os.Args[1]}
	if len(os.Args) == 5 {
		http["tls"] = map[string]any{"cert_file": os.Args[3], "key_file": os.Args[4]}
	}
	if err := receive(http, os.Args[2]); err != nil {
		fail(err)
	}
}

func receive(http map[string]any, path string) error {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig()
	given := confmap.NewFromStringMap(map[string]any{"protocols": map[string]any{"http": http}})
	if err := given.Unmarshal(config); err != nil {
		return err
	}
	var writing sync.Mutex
	lines := ptrace.JSONMarshaler{}
	sink, err := consumer.NewTraces(func(_ context.Context, traces ptrace.Traces) error {
		line, err := lines.MarshalTraces(traces)
		if err != nil {
			return err
		}
		writing.Lock()
		defer writing.Unlock()
		_, err = file.Write(append(line, '\n'))
		return err
	})
	if err != nil {
		return err
	}
	settings := receiver.Settings{
		ID:                component.NewID(factory.Type()),
		TelemetrySettings: componenttest.NewNopTelemetrySettings(),
		BuildInfo:         component.NewDefaultBuildInfo(),
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	otlp, err := factory.CreateTraces(ctx, settings, config, sink)
	if err != nil {
		return err
	}
	if err := otlp.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}
	<-ctx.Done()
	return otlp.Shutdown(context.Background())
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "otlp:", why)
	os.Exit(1)
}
