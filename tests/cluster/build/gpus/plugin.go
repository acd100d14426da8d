package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// How often the files are looked at: those of the devices, and the socket, which a kubelet that
// starts deletes.
const lookEvery = 50 * time.Millisecond

// plugin hands out the devices of a file, which may be rewritten while it runs.
type plugin struct {
	api.UnimplementedDevicePluginServer
	devices string
}

// servePlugin registers, and again with each kubelet that has started anew.
func servePlugin(ctx context.Context, resource, devices string) error {
	name := strings.NewReplacer("/", "_").Replace(resource) + ".sock"
	path := filepath.Join(api.DevicePluginPath, name)
	for ctx.Err() == nil {
		if err := serveUntilDeleted(ctx, path, resource, &plugin{devices: devices}); err != nil {
			return err
		}
	}
	return os.RemoveAll(path)
}

func serveUntilDeleted(ctx context.Context, path, resource string, served *plugin) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	// Else closing it would delete its successor's.
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	server := grpc.NewServer()
	defer server.Stop()
	api.RegisterDevicePluginServer(server, served)
	go server.Serve(listener)
	registered := false
	for tick := time.Tick(lookEvery); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		if _, err := os.Lstat(path); err != nil {
			return nil
		}
		if !registered {
			if err := register(ctx, filepath.Base(path), resource); err != nil {
				fmt.Println("not registered:", err)
				continue
			}
			registered = true
			fmt.Println("registered with the kubelet:", resource)
		}
	}
}

func register(ctx context.Context, endpoint, resource string) error {
	connection, err := grpc.NewClient(
		"unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request := &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: resource,
		Options: &api.DevicePluginOptions{},
	}
	_, err = api.NewRegistrationClient(connection).Register(ctx, request)
	return err
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch tells the file's devices, and again whenever they are others. A file that cannot be
// read is one that is being written.
func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	told := ""
	for tick := time.Tick(lookEvery); ; {
		health := map[string]string{}
		if err := readJSON(p.devices, &health); err == nil && fmt.Sprint(health) != told {
			told = fmt.Sprint(health)
			fmt.Println("telling", told)
			if err := stream.Send(&api.ListAndWatchResponse{Devices: listed(health)}); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-tick:
		}
	}
}

func listed(health map[string]string) []*api.Device {
	devices := []*api.Device{}
	for id, state := range health {
		devices = append(devices, &api.Device{ID: id, Health: state})
	}
	sort.Slice(devices, func(i, j int) bool { return devices[i].ID < devices[j].ID })
	return devices
}

// Allocate tells containers what they have been given as NVIDIA's plugin does.
func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		given := strings.Join(container.DevicesIds, ",")
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": given},
		})
	}
	return response, nil
}
