// Runs containerd's own snapshotter suite against `larder-snapshotter run` through its socket.
package conformance

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

var (
	program = flag.String("larder", "", "the larder-snapshotter to test")
	driver  = flag.String("driver", "auto", "its --fs-driver")
)

// start runs a snapshotter of its own for each sub-test, on an empty root.
func start(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "larder.sock")
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, nil, err
	}
	command := exec.Command(*program, "run", "--address", socket, "--root", filepath.Join(root, "root"), "--fs-driver", *driver)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() error {
		_ = command.Process.Signal(syscall.SIGTERM)
		err := command.Wait()
		_ = log.Close()
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("larder-snapshotter: %w\n%s", err, text)
		}
		return nil
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if probe, err := net.Dial("unix", socket); err == nil {
			_ = probe.Close()
			break
		} else if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("no socket after 20 s: %v, %v", err, stop())
		}
	}
	connection, err := grpc.Dial("unix://"+socket, grpc.WithInsecure())
	if err != nil {
		return nil, nil, err
	}
	client := snapshotsapi.NewSnapshotsClient(connection)
	return proxy.NewSnapshotter(client, "larder"), func() error {
		_ = connection.Close()
		return stop()
	}, nil
}

// The suite leaves out its directory rename for overlayfs by that name, and the mounts here are overlayfs.
func TestSnapshotter(t *testing.T) {
	testsuite.SnapshotterSuite(t, "overlayfs", start)
}
