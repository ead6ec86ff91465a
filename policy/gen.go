// SPDX-License-Identifier: Apache-2.0

package policy

//go:generate go run ./internal/schemagen ../contrib/schema/podpolicy.schema.json ../docs/policy.md
