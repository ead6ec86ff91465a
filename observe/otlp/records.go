// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otellog "go.opentelemetry.io/otel/log"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"sidegate/cgroups"
)

// logRecord is an event as OpenTelemetry names what is in it.
func logRecord(v *cgroups.Event) (r otellog.Record) {
	r.SetTimestamp(v.Time)
	r.SetObservedTimestamp(time.Now())
	r.SetEventName("sidegate." + text(v.Kind))
	severity := otellog.SeverityInfo
	if v.Verdict == cgroups.Denied || v.Verdict == cgroups.Audited {
		severity = otellog.SeverityWarn
	}
	r.SetSeverity(severity)
	r.SetBody(attribute.StringValue(text(fmt.Sprintf("%s %s: %s", v.Kind, v.Verdict, cmp.Or(v.Text, v.Reason)))))
	a := &attributes{}
	a.who(v)
	a.where(v)
	a.tls(v.TLS)
	r.AddAttributes(a.list...)
	return r
}

// text makes of a string one that a protocol buffer takes: an app may name its files as it likes, and one wrong name would
// lose a batch.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// attributes are those that there is something to say of.
type attributes struct{ list []attribute.KeyValue }

func (a *attributes) str(k attribute.Key, v string) {
	if v != "" {
		a.list = append(a.list, k.String(text(v)))
	}
}

func (a *attributes) num(k attribute.Key, v int64) {
	if v != 0 {
		a.list = append(a.list, k.Int64(v))
	}
}

// who says whose event it is, and what became of it.
func (a *attributes) who(v *cgroups.Event) {
	a.str("sidegate.pod", v.Pod)
	// Names of pods of Kubernetes are written so, and no others.
	if namespace, name, ok := strings.Cut(v.Pod, "/"); ok {
		a.str(semconv.K8SNamespaceNameKey, namespace)
		a.str(semconv.K8SPodNameKey, name)
	}
	a.str(semconv.ContainerNameKey, v.Container)
	a.str(semconv.ContainerIDKey, v.ContainerID)
	a.num(semconv.ProcessPIDKey, int64(v.PID))
	a.str("process.title", v.Comm)
	a.str(semconv.ProcessExecutablePathKey, v.Process)
	a.str("container.runtime.name", v.Runtime)
	a.str("sidegate.role", v.Role)
	a.str("sidegate.peer", v.Peer)
	a.str("sidegate.verdict", v.Verdict)
	a.str("sidegate.reason", v.Reason)
	a.str("sidegate.policy", v.Policy)
	a.str("sidegate.rule", v.Rule)
	a.num("sidegate.suppressed", int64(v.Suppressed))
}

// where says between whom. The port of an event is the destination's, whoever calls.
func (a *attributes) where(v *cgroups.Event) {
	a.str(semconv.NetworkTransportKey, v.Protocol)
	addr := v.Address.Addr().Unmap()
	far := semconv.DestinationAddressKey
	switch v.Direction {
	case "egress":
		a.str(semconv.NetworkIODirectionKey, "transmit")
	case "ingress":
		a.str(semconv.NetworkIODirectionKey, "receive")
		far = semconv.SourceAddressKey
	}
	if addr.IsValid() && !addr.IsUnspecified() {
		a.str(far, addr.String())
		family := "ipv4"
		if addr.Is6() {
			family = "ipv6"
		}
		a.str(semconv.NetworkTypeKey, family)
	}
	if v.Socket != "" {
		a.str(semconv.DestinationAddressKey, v.Socket)
		return
	}
	a.num(semconv.DestinationPortKey, int64(v.Address.Port()))
}

func (a *attributes) tls(t *cgroups.TLSEvent) {
	if t == nil {
		return
	}
	a.str(semconv.ServerAddressKey, t.SNI)
	if t.Version != "" {
		a.str(semconv.TLSProtocolNameKey, "tls")
		a.str(semconv.TLSProtocolVersionKey, strings.TrimPrefix(t.Version, "TLS "))
	}
	a.str(semconv.TLSCipherKey, t.Suite)
	a.str(semconv.TLSNextProtocolKey, t.ALPN)
	a.str("sidegate.tls.kind", t.Kind)
	a.str("sidegate.tls.from", t.From)
	if t.Truncated {
		a.list = append(a.list, attribute.Bool("sidegate.truncated", true))
	}
	a.num("sidegate.tls.client.bytes", t.ClientBytes)
	a.num("sidegate.tls.server.bytes", t.ServerBytes)
	a.num("sidegate.tls.duration_ms", t.Duration.Milliseconds())
	if t.HTTP != nil {
		a.str("sidegate.http.kind", t.HTTP.Kind)
	}
}
