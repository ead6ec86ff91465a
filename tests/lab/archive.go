// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
)

// writeArchive writes images, by name, to a file as `docker save` does: a configuration and one layer of each, and a manifest.
func writeArchive(file string, images map[string]*image) error {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifest []entry
	archive := &image{}
	for n, name := range slices.Sorted(maps.Keys(images)) {
		layer := fmt.Sprintf("%s.layer%d", file, n)
		defer os.Remove(layer)
		sum, err := images[name].writeLayer(layer)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		config, err := json.Marshal(map[string]any{
			"architecture": runtime.GOARCH, "os": "linux",
			"config": map[string]any{"Cmd": images[name].command, "Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + sum}},
		})
		if err != nil {
			return err
		}
		e := entry{Config: fmt.Sprintf("%d.json", n), RepoTags: []string{name}, Layers: []string{fmt.Sprintf("%d.tar", n)}}
		manifest = append(manifest, e)
		archive.text(e.Config, string(config))
		archive.file(e.Layers[0], layer)
	}
	list, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	archive.text("manifest.json", string(list))
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := archive.write(out); err != nil {
		return err
	}
	return out.Close()
}

// writeLayer writes the image's files to a tar and returns its SHA-256 in hexadecimal.
func (i *image) writeLayer(file string) (string, error) {
	out, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer out.Close()
	sum := sha256.New()
	if err := i.write(io.MultiWriter(out, sum)); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), out.Close()
}
