// Unpacks every NAME.tar of a folder into NAME with containerd's own code, the way its overlayfs
// snapshotter does for every layer but the lowest, and prints "NAME ok" or "NAME failed: why".
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/archive"
)

func unpack(tar, dir string) error {
	file, err := os.Open(tar)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	_, err = archive.Apply(context.Background(), dir, file,
		archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	return err
}

func main() {
	tars, err := filepath.Glob(filepath.Join(os.Args[1], "*.tar"))
	if err != nil {
		panic(err)
	}
	for _, tar := range tars {
		dir := strings.TrimSuffix(tar, ".tar")
		result := "ok"
		if err := unpack(tar, dir); err != nil {
			result = "failed: " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Println(filepath.Base(dir), result)
	}
}
