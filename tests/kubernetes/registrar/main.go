// Tells kubelet about a CSI driver, as the node-driver-registrar sidecar does and with its arguments. That one comes as an image
// only: no Go module proxy serves it.
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
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Where kubelet looks for registration sockets, as the container sees it.
const directory = "/registration"

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

// The driver's own name, as soon as it listens.
func nameOf(address string) (string, error) {
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	context, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	info, err := csi.NewIdentityClient(connection).GetPluginInfo(context, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	return info.GetName(), err
}

func serve(r registrar) error {
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
	address := flag.String("csi-address", "/csi/csi.sock", "the driver's socket")
	socket := flag.String("kubelet-registration-path", "", "the driver's socket as kubelet sees it")
	flag.Parse()
	driver, err := nameOf(*address)
	if err == nil {
		err = serve(registrar{driver: driver, socket: *socket})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "registrar:", err)
		os.Exit(1)
	}
}
