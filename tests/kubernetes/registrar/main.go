// Tells kubelet about one CSI driver, as the node-driver-registrar sidecar does. That one comes as an image only: no Go
// module proxy serves it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type registrar struct {
	registration.UnimplementedRegistrationServer
	driver, socket string
}

func (r registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              r.driver,
		Endpoint:          r.socket,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		// The container ends and is started again: kubelet asks anew.
		fmt.Fprintf(os.Stderr, "registrar: kubelet refuses %s: %s\n", r.driver, status.Error)
		os.Exit(1)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func serve(directory string, r registrar) error {
	path := filepath.Join(directory, r.driver+"-reg.sock")
	// Of an earlier life.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	return server.Serve(listener)
}

func main() {
	driver := flag.String("driver", "csi.cowslip.io", "the driver's name")
	socket := flag.String("socket", "", "the driver's socket as kubelet sees it")
	directory := flag.String("directory", "/registration", "kubelet's folder of registration sockets")
	flag.Parse()
	if err := serve(*directory, registrar{driver: *driver, socket: *socket}); err != nil {
		fmt.Fprintln(os.Stderr, "registrar:", err)
		os.Exit(1)
	}
}
