# SPDX-License-Identifier: Apache-2.0
#
# make demo    the main job on a real podman pod
# make demo-nri   the same on a pod of a real containerd
# make demo-docker   the same with Docker's containers
# make demo-tls   HTTPS of an app: seen, denied, and changed by a sidecar, with the site's own certificate
# make test    all tests
# make escape  every known way around a sidecar, tried with and without Sidegate
# make transparency  whether programs can notice acceleration, here and on Debian's kernels
# make help    the rest

SHELL := /bin/sh
.DELETE_ON_ERROR:

DESTDIR ?=
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec/sidegate
# What containers mount that opt in to kTLS is below it. sidegate-oci-hook and sidegate-nri are told at their build.
DATADIR ?= $(PREFIX)/share/sidegate
# systemd reads this one below /usr/local and /usr.
UNITDIR ?= $(PREFIX)/lib/systemd/system
MANDIR ?= $(PREFIX)/share/man
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
# The one directory that podman reads by default (oci-hooks(5)).
HOOKSDIR ?= /usr/share/containers/oci/hooks.d

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# Manual pages are of the day of what they are made from.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

# Every recipe finds the Go that scripts/deps.sh found or fetched.
WITH_GO = PATH="$$(scripts/deps.sh build):$$PATH"
BUILD = $(WITH_GO) CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION) -X sidegate/cgroups/ktls.defaultHostDir=$(DATADIR)/ktls'

# By count: with a time, go test at times reports its own deadline as a failure.
FUZZTIME ?= 500x

# What the chart asks for by default.
IMAGE ?= localhost/sidegate:$(shell sed -n 's/^appVersion: "\(.*\)"/\1/p' contrib/kubernetes/sidegate/Chart.yaml)
PODMAN ?= podman
PLUGINDIR ?= build/docker-plugin

.PHONY: help build man demo demo-nri demo-docker demo-tls escape test kernels transparency check bench bench-quick generate check-generated lint fuzz deps install uninstall clean image docker-plugin kubernetes

help:
	@sed -n 's/^# make /make /p' Makefile
	@echo 'make build   the binaries, in bin/'
	@echo 'make bench   what it costs, as ratios of interleaved runs, with charts; make bench-quick: a rough look'
	@echo 'make kernels all of tests/vm on every one of Debian'"'"'s kernels'
	@echo 'make lint    gofmt, vet, staticcheck, clang-format, shellcheck'
	@echo 'make generate / check-generated   the BPF objects and their Go types, and the reference of policies'
	@echo 'make man     manual pages and completions of shells, in build/'
	@echo 'make install / uninstall          DESTDIR, PREFIX, HOOKSDIR, UNITDIR, MANDIR, BASHDIR, ZSHDIR, FISHDIR'
	@echo 'make image   a container image for Kubernetes, in podman and as build/sidegate-image.tar'
	@echo 'make docker-plugin   a managed plugin for Docker, build/docker-plugin, and how to create it'
	@echo 'make kubernetes   contrib/kubernetes/sidegate.yaml, from the Helm chart beside it'
	@echo 'make deps    installs what the above need'

build:
	$(BUILD) -o bin/sidegate ./cmd/sidegate
	$(BUILD) -o bin/sidegate-oci-hook ./oci-hook
	$(BUILD) -o bin/sidegate-nri ./nri
	$(BUILD) -o bin/sidegate-docker ./dockerplugin
	$(BUILD) -o bin/sidegate-tls ./cmd/sidegate-tls

# What the pages say of defaults is not to be of who makes them.
man: build
	rm -rf build/man build/completion
	mkdir -p build/man build/completion
	for name in sidegate sidegate-nri sidegate-docker sidegate-tls; do \
		env -i SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) bin/$$name man build/man || exit 1; \
	done
	sed "s|@VERSION@|$(VERSION)|; s|@DATE@|$$(date -u -d @$(SOURCE_DATE_EPOCH) '+%Y-%m-%d')|" \
		contrib/man/sidegate-oci-hook.8 >build/man/sidegate-oci-hook.8
	bin/sidegate completion bash >build/completion/bash
	bin/sidegate completion zsh >build/completion/zsh
	bin/sidegate completion fish >build/completion/fish

deps:
	scripts/deps.sh test

demo: deps build
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/demo ./tests/demo
	bin/demo

demo-nri: deps build
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/demo ./tests/demo
	$(WITH_GO) bin/demo -runtime containerd

demo-docker: deps build
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/demo ./tests/demo
	$(WITH_GO) bin/demo -runtime docker

demo-tls: deps build
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/demo ./tests/demo
	$(WITH_GO) bin/demo -tls

# Every case in every set-up; the table is in build/escape.json and docs/escapes.md.
escape: deps build
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/escape ./tests/escape
	$(WITH_GO) bin/escape -markdown docs/escapes.md

# In process with the race detector, then real runtimes and proxies, two at a time, since they mostly wait, and kernels,
# which do not. `make escape` has the escape suite's other set-ups, `make kernels` all of tests/vm on every kernel.
test: deps build lint check-generated fuzz
	$(WITH_GO) CGO_ENABLED=1 scripts/with-bpffs.sh go test -race -vet=off -count=1 ./bpf/... ./cgroups/... ./policy/... ./observe/... ./oci-hook/... ./nri/... ./dockerplugin/... ./cmd/...
	$(WITH_GO) CGO_ENABLED=0 sh -c 'go test -vet=off -count=1 -p 2 -timeout 40m $$(go list ./tests/... | grep -v "/vm$$")'
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/escape ./tests/escape
	$(WITH_GO) CGO_ENABLED=0 go test -vet=off -count=1 -timeout 40m ./tests/vm
	$(WITH_GO) bin/escape -setup sidegate -json build/escape-test.json

# All of tests/vm on every one of Debian's kernels, where make test has whole runtimes, and some of cgroups, on one.
kernels: deps build
	$(WITH_GO) CGO_ENABLED=0 SIDEGATE_VM_ALL=1 go test -count=1 -timeout 60m ./tests/vm

# Whether programs can notice acceleration, here and on Debian's kernels.
transparency: deps build
	$(WITH_GO) CGO_ENABLED=0 go test -count=1 ./tests/transparency
	$(WITH_GO) CGO_ENABLED=0 go test -count=1 -tags transparency -run TestTransparency ./tests/vm

fuzz:
	$(WITH_GO) scripts/with-bpffs.sh scripts/fuzz.sh $(FUZZTIME)

# Less than 30 minutes; what does not fit in is said to be missing. The figures are in build/bench.json, the charts in docs.
bench: deps build
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/bench ./tests/bench
	$(WITH_GO) bin/bench
	bin/bench -svg docs

# Less than 2 minutes: the data plane in all its setups, many containers, and HTTPS, in few rounds.
bench-quick: deps build
	$(WITH_GO) CGO_ENABLED=0 go build -o bin/bench ./tests/bench
	$(WITH_GO) bin/bench -quick -only '^(hop|wrk|scale|tls)$$'

lint:
	$(WITH_GO) scripts/lint.sh

generate:
	scripts/deps.sh generate >/dev/null
	$(WITH_GO) go generate ./...

# The committed objects are what the sources make, and so are the policies' schema and reference.
check-generated: generate
	@git diff --exit-code --stat -- '*_bpfel.go' '*_bpfel.o' contrib/schema docs/policy.md || \
		{ echo 'generated files are not current: commit what `make generate` made'; exit 1; }

install: build man
	install -D -m 755 bin/sidegate $(DESTDIR)$(BINDIR)/sidegate
	# By a rename: install(1) removes first, and podman skips a hook whose binary is not there.
	install -D -m 755 bin/sidegate-oci-hook $(DESTDIR)$(LIBEXECDIR)/.sidegate-oci-hook
	mv -f $(DESTDIR)$(LIBEXECDIR)/.sidegate-oci-hook $(DESTDIR)$(LIBEXECDIR)/sidegate-oci-hook
	install -D -m 755 bin/sidegate-nri $(DESTDIR)$(BINDIR)/sidegate-nri
	install -D -m 755 bin/sidegate-docker $(DESTDIR)$(BINDIR)/sidegate-docker
	install -D -m 755 bin/sidegate-tls $(DESTDIR)$(BINDIR)/sidegate-tls
	for f in contrib/ktls/*; do install -D -m 644 $$f $(DESTDIR)$(DATADIR)/ktls/$${f##*/} || exit 1; done
	install -d $(DESTDIR)/etc/sidegate/policies $(DESTDIR)$(HOOKSDIR) $(DESTDIR)$(UNITDIR)
	for f in contrib/systemd/*.service; do \
		sed 's|/usr/local/bin/|$(BINDIR)/|' $$f >$(DESTDIR)$(UNITDIR)/$${f##*/} || exit 1; \
	done
	install -d $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man8
	install -m 644 build/man/*.1 $(DESTDIR)$(MANDIR)/man1
	install -m 644 build/man/*.8 $(DESTDIR)$(MANDIR)/man8
	install -D -m 644 build/completion/bash $(DESTDIR)$(BASHDIR)/sidegate
	install -D -m 644 build/completion/zsh $(DESTDIR)$(ZSHDIR)/_sidegate
	install -D -m 644 build/completion/fish $(DESTDIR)$(FISHDIR)/sidegate.fish
	for f in contrib/oci-hooks.d/*.json; do \
		sed 's|@LIBEXECDIR@|$(LIBEXECDIR)|' $$f >$(DESTDIR)$(HOOKSDIR)/$${f##*/} || exit 1; \
	done

# The hook's definition goes first: podman skips a hook whose binary is missing
# without a word.
uninstall:
	for f in contrib/oci-hooks.d/*.json; do rm -f $(DESTDIR)$(HOOKSDIR)/$${f##*/}; done
	for f in contrib/systemd/*.service; do rm -f $(DESTDIR)$(UNITDIR)/$${f##*/}; done
	for f in contrib/ktls/*; do rm -f $(DESTDIR)$(DATADIR)/ktls/$${f##*/}; done
	for name in sidegate sidegate-nri sidegate-docker sidegate-tls; do rm -f $(DESTDIR)$(BINDIR)/$$name; done
	rm -f $(DESTDIR)$(LIBEXECDIR)/sidegate-oci-hook
	rm -f $(DESTDIR)$(MANDIR)/man1/sidegate.1 $(DESTDIR)$(MANDIR)/man1/sidegate-*.1 $(DESTDIR)$(MANDIR)/man8/sidegate-*.8
	rm -f $(DESTDIR)$(BASHDIR)/sidegate $(DESTDIR)$(ZSHDIR)/_sidegate $(DESTDIR)$(FISHDIR)/sidegate.fish
	-rmdir $(DESTDIR)$(LIBEXECDIR) $(DESTDIR)$(DATADIR)/ktls $(DESTDIR)$(DATADIR) $(DESTDIR)/etc/sidegate/policies $(DESTDIR)/etc/sidegate 2>/dev/null

# Four static programs on nothing: needs no network. PODMAN=docker has no oci-archive; push from there.
image: build
	$(PODMAN) build -f contrib/kubernetes/Containerfile -t $(IMAGE) .
	mkdir -p build
	rm -f build/sidegate-image.tar
	$(PODMAN) save --format oci-archive -o build/sidegate-image.tar $(IMAGE)

# What docker plugin create takes: a description, and a root directory, which is one static program. Needs no Docker. It
# is made beside and then put in place, so that what is there is never half of it.
docker-plugin:
	rm -rf $(PLUGINDIR).new
	$(BUILD) -o $(PLUGINDIR).new/rootfs/sidegate-docker ./dockerplugin
	install -m 644 LICENSE $(PLUGINDIR).new/rootfs/LICENSE
	cp -R LICENSES $(PLUGINDIR).new/rootfs/LICENSES
	install -m 644 contrib/docker-plugin/config.json $(PLUGINDIR).new/config.json
	rm -rf $(PLUGINDIR)
	mv $(PLUGINDIR).new $(PLUGINDIR)
	@echo 'Next, where Docker runs, as root:'
	@echo '    mkdir -p /etc/sidegate/policies'
	@echo '    docker plugin create sidegate $(PLUGINDIR)'
	@echo '    docker plugin enable sidegate'
	@echo '    docker network create -d sidegate:latest mesh'

# Renders with Helm's own packages, tests/tools/helm, which the first time takes minutes to build.
kubernetes:
	$(WITH_GO) CGO_ENABLED=0 go test -count=1 ./tests/kubernetes -run 'TestPlain|TestTable' -update

clean:
	rm -rf bin build
