// SPDX-License-Identifier: Apache-2.0

package main

// field is what the reference has of a field that neither the Go types nor the schema say.
type field struct {
	// example is the part of a policy that shows the field; apiVersion and so on are as always where they are left out.
	example string
	// value is the default as it would be written, where it is one: a policy with it means what one without does.
	value string
	// absent says what holds where the field is not there, if that cannot be written.
	absent string
}

// fieldsOf lists all fields by their paths, those of an object that is in several places by the first one.
func fieldsOf() map[string]field {
	return map[string]field{
		"apiVersion": {
			example: `apiVersion: sidegate/v1alpha1`,
		},
		"kind": {
			example: `kind: PodPolicy`,
		},
		"metadata": {
			example: `metadata: {name: shop}`,
		},
		"spec": {
			example: `spec: {}`,
		},
		"metadata.name": {
			example: `metadata: {name: shop}`,
		},
		"metadata.labels": {
			example: `metadata:
  name: shop
  labels: {team: payments}`,
			absent: "none",
		},
		"spec.podSelector": {
			example: `spec:
  podSelector:
    matchLabels: {app: shop}`,
			absent: "no pod is selected",
		},
		"spec.roles": {
			example: `spec:
  roles:
  - {container: haproxy, role: sidecar}`,
			absent: "annotations and the default names decide",
		},
		"spec.redirect": {
			example: `spec:
  redirect: {outbound: 15001, inbound: 15006}`,
			absent: "its defaults",
		},
		"spec.sidecarPorts": {
			example: `spec:
  sidecarPorts: [15021, 15090-15099]`,
			absent: "the ports of `redirect` alone are the sidecar's",
		},
		"spec.exclude": {
			example: `spec:
  exclude:
    egress:
    - {cidr: 10.0.0.0/8, ports: [5432]}
    ingress:
    - {ports: [9090]}`,
			absent: "nothing goes round the sidecar",
		},
		"spec.nonTCP": {
			example: `spec:
  nonTCP: allow`,
			value: "deny",
		},
		"spec.init": {
			example: `spec:
  init: direct`,
			value: "sidecar",
		},
		"spec.adminCapabilities": {
			example: `spec:
  adminCapabilities: allow`,
			value: "deny",
		},
		"spec.mode": {
			example: `spec:
  mode: audit`,
			value: "enforce",
		},
		"spec.accelerate": {
			example: `spec:
  accelerate: on`,
			value: "auto",
		},
		"spec.tls": {
			example: `spec:
  tls: {mode: inspect}`,
			absent: "no connection is judged by what is inside TLS",
		},
		"spec.rules": {
			example: `spec:
  rules:
  - role: app
    egress:
    - {to: [{entity: world}], ports: [443]}`,
			absent: "`redirect`, `exclude` and `nonTCP` alone say what may be reached",
		},
		"spec.podSelector.matchLabels": {
			example: `spec:
  podSelector:
    matchLabels: {app: shop, tier: web}`,
			absent: "no condition",
		},
		"spec.podSelector.matchExpressions": {
			example: `spec:
  podSelector:
    matchExpressions:
    - {key: tier, operator: In, values: [web, api]}`,
			absent: "no condition",
		},
		"spec.podSelector.matchExpressions[].key": {
			example: `spec:
  podSelector:
    matchExpressions:
    - {key: canary, operator: DoesNotExist}`,
		},
		"spec.podSelector.matchExpressions[].operator": {
			example: `spec:
  podSelector:
    matchExpressions:
    - {key: canary, operator: DoesNotExist}`,
		},
		"spec.podSelector.matchExpressions[].values": {
			example: `spec:
  podSelector:
    matchExpressions:
    - {key: tier, operator: NotIn, values: [batch]}`,
			absent: "none, as Exists and DoesNotExist need",
		},
		"spec.roles[].container": {
			example: `spec:
  roles:
  - {container: metrics-agent, role: none}`,
		},
		"spec.roles[].role": {
			example: `spec:
  roles:
  - {container: metrics-agent, role: none}`,
		},
		"spec.redirect.outbound": {
			example: `spec:
  redirect: {outbound: 4140}`,
			value: "15001",
		},
		"spec.redirect.inbound": {
			example: `spec:
  redirect: {inbound: 4143}`,
			value: "15006",
		},
		"spec.redirect.dns": {
			example: `spec:
  redirect: {dns: 15053}`,
			absent: "DNS is not redirected",
		},
		"spec.redirect.getsockname": {
			example: `spec:
  redirect: {getsockname: original}`,
			value: "listener",
		},
		"spec.exclude.egress": {
			example: `spec:
  exclude:
    egress:
    - {cidr: 10.0.0.0/8, ports: [5432]}`,
			absent: "nothing",
		},
		"spec.exclude.ingress": {
			example: `spec:
  exclude:
    ingress:
    - {ports: [9090], cidr: 10.0.0.0/8}`,
			absent: "nothing",
		},
		"spec.exclude.egress[].cidr": {
			example: `spec:
  exclude:
    egress:
    - {cidr: "fd00::/8"}`,
			absent: "all sources in `ingress`; an error in `egress`",
		},
		"spec.exclude.egress[].ports": {
			example: `spec:
  exclude:
    egress:
    - {cidr: 10.0.0.0/8, ports: [5432, 6379, 9000-9010]}`,
			absent: "all ports in `egress`; an error in `ingress`",
		},
		"spec.exclude.egress[].protocol": {
			example: `spec:
  exclude:
    egress:
    - {cidr: 192.0.2.53/32, ports: [53], protocol: any}`,
			value: "tcp",
		},
		"spec.tls.mode": {
			example: `spec:
  tls: {mode: inspect}`,
			value: "off",
		},
		"spec.tls.port": {
			example: `spec:
  tls: {mode: inspect, port: 15044}`,
			value: "15043",
		},
		"spec.tls.require": {
			example: `spec:
  tls:
    mode: inspect
    require: none
    sni: {default: allow}`,
			absent: "`ktls` if `http` is there or the mode is `deferred`, else `none`",
		},
		"spec.tls.plaintext": {
			example: `spec:
  tls: {mode: inspect, plaintext: deny}`,
			value: "allow",
		},
		"spec.tls.other": {
			example: `spec:
  tls:
    mode: inspect
    http: {default: deny}
    other: allow`,
			absent: "as `http.default`; `allow` without `http`",
		},
		"spec.tls.fronting": {
			example: `spec:
  tls:
    mode: inspect
    http: {default: allow}
    fronting: allow`,
			value: "deny",
		},
		"spec.tls.sni": {
			example: `spec:
  tls:
    mode: inspect
    sni:
      default: allow
      rules:
      - {name: trackers, action: deny, hosts: ["*.tracker.example"]}`,
			absent: "all names are allowed",
		},
		"spec.tls.http": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: api, action: allow, hosts: [api.example], methods: [GET]}`,
			absent: "no request is judged",
		},
		"spec.tls.headers": {
			example: `spec:
  tls:
    mode: inspect
    headers: [user-agent, x-request-id]`,
			absent: "none",
		},
		"spec.tls.sni.default": {
			example: `spec:
  tls:
    mode: inspect
    sni: {default: deny}`,
		},
		"spec.tls.sni.absent": {
			example: `spec:
  tls:
    mode: inspect
    sni: {default: allow, absent: allow}`,
			value: "deny",
		},
		"spec.tls.sni.rules": {
			example: `spec:
  tls:
    mode: inspect
    sni:
      default: deny
      rules:
      - {name: partners, action: allow, hosts: [api.example, "*.partner.example"]}`,
			absent: "`default` decides",
		},
		"spec.tls.sni.rules[].name": {
			example: `spec:
  tls:
    mode: inspect
    sni:
      default: deny
      rules:
      - {name: partners, action: allow, hosts: ["*.partner.example"]}`,
		},
		"spec.tls.sni.rules[].action": {
			example: `spec:
  tls:
    mode: inspect
    sni:
      default: deny
      rules:
      - {name: partners, action: allow, hosts: ["*.partner.example"]}`,
		},
		"spec.tls.sni.rules[].hosts": {
			example: `spec:
  tls:
    mode: inspect
    sni:
      default: deny
      rules:
      - {name: partners, action: allow, hosts: ["*.partner.example"]}`,
		},
		"spec.tls.http.default": {
			example: `spec:
  tls:
    mode: inspect
    http: {default: deny}`,
		},
		"spec.tls.http.rules": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: read, action: allow, methods: [GET, HEAD]}`,
			absent: "`default` decides",
		},
		"spec.tls.http.rules[].name": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: read, action: allow, methods: [GET, HEAD]}`,
		},
		"spec.tls.http.rules[].action": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: read, action: allow, methods: [GET, HEAD]}`,
		},
		"spec.tls.http.rules[].hosts": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: api, action: allow, hosts: [api.example, "*.partner.example", 192.0.2.7]}`,
			absent: "all hosts",
		},
		"spec.tls.http.rules[].methods": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: read, action: allow, methods: [GET, HEAD]}`,
			absent: "all methods but CONNECT",
		},
		"spec.tls.http.rules[].path": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: v1, action: allow, path: {prefix: /v1}}`,
			absent: "all paths",
		},
		"spec.tls.http.rules[].headers": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: traced, action: allow, headers: [x-request-id]}`,
			absent: "none has to be there",
		},
		"spec.tls.http.rules[].sni": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: api, action: allow, hosts: [api.example], sni: [api.example]}`,
			absent: "any, or none",
		},
		"spec.tls.http.rules[].upgrades": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: events, action: allow, path: {exact: /events}, upgrades: [websocket]}`,
			absent: "no upgrade is allowed",
		},
		"spec.tls.http.rules[].path.exact": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: health, action: allow, path: {exact: /healthz}}`,
			absent: "`prefix` or `regex` is there",
		},
		"spec.tls.http.rules[].path.prefix": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: v1, action: allow, path: {prefix: /v1}}`,
			absent: "`exact` or `regex` is there",
		},
		"spec.tls.http.rules[].path.regex": {
			example: `spec:
  tls:
    mode: inspect
    http:
      default: deny
      rules:
      - {name: orders, action: allow, path: {regex: "/v[12]/orders/[0-9]+"}}`,
			absent: "`exact` or `prefix` is there",
		},
		"spec.rules[].role": {
			example: `spec:
  rules:
  - role: app
    egress:
    - {to: [{entity: world}], ports: [443]}`,
			absent: "`container` is there",
		},
		"spec.rules[].container": {
			example: `spec:
  rules:
  - container: migrate
    egress:
    - {to: [{cidr: 10.0.0.5/32}], ports: [5432]}`,
			absent: "`role` is there",
		},
		"spec.rules[].egress": {
			example: `spec:
  rules:
  - role: app
    egress: []`,
			absent: "if `ingress` is there, nothing is allowed out; else everything",
		},
		"spec.rules[].ingress": {
			example: `spec:
  rules:
  - role: app
    egress:
    - {to: [{entity: world}]}
    ingress:
    - {from: [{role: sidecar}], ports: [8080]}`,
			absent: "if `egress` is there, nothing is allowed in; else everything",
		},
		"spec.rules[].unix": {
			example: `spec:
  rules:
  - role: app
    unix:
      allow:
      - {path: "/run/db/*.sock", type: stream}`,
			absent: "all UNIX sockets may be reached",
		},
		"spec.rules[].processes": {
			example: `spec:
  rules:
  - role: sidecar
    processes: [/usr/sbin/haproxy]`,
			absent: "all executables may have sockets",
		},
		"spec.rules[].egress[].to": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{role: app}], ports: [8080]}`,
			absent: "everybody: every role of the pod, world and host",
		},
		"spec.rules[].egress[].protocol": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{cidr: 192.0.2.53/32}], protocol: udp, ports: [53]}`,
			value: "tcp",
		},
		"spec.rules[].egress[].ports": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{entity: world}], ports: [443, 8000-8100]}`,
			absent: "all ports",
		},
		"spec.rules[].egress[].types": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{entity: world}], protocol: icmp, types: [8]}`,
			absent: "all types",
		},
		"spec.rules[].ingress[].from": {
			example: `spec:
  rules:
  - role: sidecar
    ingress:
    - {from: [{entity: world}], ports: [8443]}`,
			absent: "everybody: every role of the pod, world and host",
		},
		"spec.rules[].ingress[].protocol": {
			example: `spec:
  rules:
  - role: sidecar
    ingress:
    - {from: [{entity: world}], protocol: any, ports: [8443]}`,
			value: "tcp",
		},
		"spec.rules[].ingress[].ports": {
			example: `spec:
  rules:
  - role: sidecar
    ingress:
    - {from: [{entity: host}], ports: [15021]}`,
			absent: "all ports",
		},
		"spec.rules[].ingress[].types": {
			example: `spec:
  rules:
  - role: sidecar
    ingress:
    - {from: [{entity: world}], protocol: icmpv6, types: [128]}`,
			absent: "all types",
		},
		"spec.rules[].egress[].to[].role": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{role: app}]}`,
			absent: "another of the four is there",
		},
		"spec.rules[].egress[].to[].container": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{container: metrics-agent}]}`,
			absent: "another of the four is there",
		},
		"spec.rules[].egress[].to[].cidr": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{cidr: 10.0.0.0/8}]}`,
			absent: "another of the four is there",
		},
		"spec.rules[].egress[].to[].except": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]}`,
			absent: "all of `cidr` is meant",
		},
		"spec.rules[].egress[].to[].entity": {
			example: `spec:
  rules:
  - role: sidecar
    egress:
    - {to: [{entity: world}]}`,
			absent: "another of the four is there",
		},
		"spec.rules[].unix.optional": {
			example: `spec:
  rules:
  - role: app
    unix: {optional: true}`,
			value: "false",
		},
		"spec.rules[].unix.allow": {
			example: `spec:
  rules:
  - role: app
    unix:
      allow:
      - {path: "/run/db/*.sock", type: stream}`,
			absent: "no UNIX socket may be reached",
		},
		"spec.rules[].unix.allow[].path": {
			example: `spec:
  rules:
  - role: app
    unix:
      allow:
      - {path: "/run/db/*.sock"}`,
			absent: "`abstract` is there",
		},
		"spec.rules[].unix.allow[].abstract": {
			example: `spec:
  rules:
  - role: app
    unix:
      allow:
      - {abstract: "@bus-*"}`,
			absent: "`path` is there",
		},
		"spec.rules[].unix.allow[].type": {
			example: `spec:
  rules:
  - role: app
    unix:
      allow:
      - {path: /run/log, type: dgram}`,
			value: "any",
		},
		"spec.rules[].unix.allow[].to": {
			example: `spec:
  rules:
  - role: app
    unix:
      allow:
      - {path: /run/proxy.sock, to: [{role: sidecar}]}`,
			absent: "whoever has bound it",
		},
	}
}
